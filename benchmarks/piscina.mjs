// Prints the times of piscina, the pool of Node's worker threads, for some of the rows of pool.py, as JSON.
//
//     npm install --prefix FOLDER piscina && node piscina.mjs FOLDER

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { monitorEventLoopDelay, performance } from 'node:perf_hooks'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { isMainThread } from 'node:worker_threads'

export default value => value

const median = values => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]

async function timed (block) {
  const began = performance.now()
  await block()
  return performance.now() - began
}

async function measure (folder) {
  const { Piscina } = createRequire(path.resolve(folder, 'package.json'))('piscina')
  const { version } = JSON.parse(readFileSync(path.resolve(folder, 'node_modules/piscina/package.json')))
  const pool = new Piscina({ filename: fileURLToPath(import.meta.url), minThreads: 2, maxThreads: 2 })
  const repeated = async (count, block) => {
    const found = []
    for (let number = 0; number < count; number++) found.push(await timed(block))
    return median(found)
  }
  const inFlight = () => Promise.all(Array.from({ length: 1000 }, () => pool.run()))
  const large = Buffer.alloc(50_000_000, 1)
  for (let number = 0; number < 5; number++) await inFlight()

  const noop = await repeated(3000, () => pool.run())
  const each = await repeated(15, inFlight) / 1000
  await pool.run(large)
  const lag = monitorEventLoopDelay({ resolution: 1 })
  lag.enable()
  const big = await repeated(7, () => pool.run(large))
  lag.disable()
  console.log(JSON.stringify({
    versions: `piscina ${version}, Node ${process.versions.node}`,
    'no-op': noop / 1e3,
    'in-flight': each / 1e3,
    '50MB': big / 1e3,
    lag: lag.max / 1e9
  }))
  await pool.destroy()
}

if (isMainThread) await measure(process.argv[2])

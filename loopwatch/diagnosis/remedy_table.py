"""The remedy table: one sentence for each kind of blocking call.

The outermost call of the culprit's line that has an entry decides, and of several entries the longest pattern. Where
none has, the cause alone does: :mod:`loopwatch.diagnosis.cause_facts`.
"""

from __future__ import annotations

from loopwatch.core.dataclasses import dataclass
from loopwatch.diagnosis.cause_facts import those
from loopwatch.events import Cause

ANY = those("is_of_call")
"""Causes for which the call that blocked matters."""


_HOLDS_GIL = those("keeps_gil")


_COMPUTES = _HOLDS_GIL | {Cause.NATIVE, Cause.UNKNOWN}


_WAITS = ANY - _HOLDS_GIL


_IN_SYSCALL = frozenset({Cause.IO})


_FOR_LOCK = frozenset({Cause.LOCK})


_TO_BE_WOKEN = frozenset({Cause.IO, Cause.LOCK})


_ON_SQL = frozenset({Cause.IO, Cause.LOCK, Cause.NATIVE})


@dataclass(frozen=True, slots=True)
class Advice:
    """The remedy for some calls.

    Attributes:
        patterns: dotted prefixes, matched on whole segments: ``os`` matches ``os.stat`` but not ``osgeo``. A leading
            dot stands for a method of an object of unknown type.
        text: the sentence; ``{call}`` is the call that matched, ``{offload}`` the executor that suits the cause.
        causes: causes for which it is right.
    """

    patterns: tuple[str, ...]
    text: str
    causes: frozenset[Cause] = ANY


def _on(patterns: str, text: str, causes: frozenset[Cause] = ANY) -> Advice:
    return Advice(tuple(patterns.split()), text, causes)


# Frames carry the module that defines a function, not the one it is imported from (`httpx.get` is
# `httpx._api.get`), C functions that of their extension (`os.stat` is `posix.stat`): both spellings are listed.
# Packages with an asyncio API are listed by the modules of their blocking API.
TABLE: tuple[Advice, ...] = (
    # Sleeping and retrying
    _on(
        "time.sleep",
        "Replace time.sleep() with await asyncio.sleep(), or call a library that sleeps through asyncio.to_thread.",
    ),
    _on(
        "tenacity.Retrying tenacity.nap",
        "Decorate a coroutine function or use tenacity.AsyncRetrying instead of {call}, which sleeps on the loop.",
    ),
    _on(
        "backoff._sync",
        "Decorate a coroutine function with backoff instead of {call}, which sleeps on the loop.",
        _WAITS,
    ),
    # HTTP clients
    _on(
        "requests urllib3 urllib.request http.client httplib2 pycurl",
        "Replace {call} with httpx.AsyncClient or aiohttp, or run it through asyncio.to_thread.",
    ),
    _on(
        "httpx.Client httpx.get httpx.post httpx.request httpx._api httpx._client.Client",
        "Replace {call} with await on an httpx.AsyncClient that is created once.",
    ),
    _on(
        "httpx._client.AsyncClient.__init__ httpx._config.create_ssl_context ssl.create_default_context "
        "ssl.SSLContext.load_verify_locations ssl.SSLContext.load_default_certs",
        "Create the client or TLS context once at start-up and share it: {call} loads all certificates each time.",
    ),
    _on(
        "boto3 botocore s3transfer", "Replace {call} with aioboto3 or aiobotocore, or run it through asyncio.to_thread."
    ),
    _on(
        "boto3.client boto3.resource boto3.session.Session.client boto3.session.Session.resource "
        "botocore.session.Session.create_client botocore.loaders",
        "Create the AWS client once at start-up and share it: {call} parses large service models.",
    ),
    _on(
        "google.cloud google.api_core google.auth",
        "Replace {call} with the library's async client, or run it through asyncio.to_thread.",
        _WAITS,
    ),
    _on(
        "elasticsearch.Elasticsearch elasticsearch._sync elasticsearch.client elasticsearch.transport "
        "elastic_transport._transport opensearchpy.OpenSearch opensearchpy.client opensearchpy.transport",
        "Replace {call} with AsyncElasticsearch or AsyncOpenSearch.",
        _WAITS,
    ),
    # Other network protocols
    _on(
        "grpc._channel grpc._common.wait",
        "Open the channel with grpc.aio and await the call instead of {call}.",
        _WAITS,
    ),
    _on("smtplib", "Replace {call} with aiosmtplib, or send through asyncio.to_thread.", _WAITS),
    _on("ftplib", "Replace {call} with aioftp, or run it through asyncio.to_thread.", _WAITS),
    _on("imaplib poplib", "Replace {call} with aioimaplib, or run it through asyncio.to_thread.", _WAITS),
    _on("paramiko fabric", "Replace {call} with asyncssh, or run it through asyncio.to_thread.", _WAITS),
    _on("ldap ldap3", "Replace {call} with bonsai's asyncio client, or run it through asyncio.to_thread.", _WAITS),
    _on("kafka", "Replace {call} of kafka-python with aiokafka.", _WAITS),
    _on("confluent_kafka", "Replace {call} with aiokafka, or poll it in a thread of its own.", _WAITS),
    _on("pika", "Replace {call} with aio-pika.", _WAITS),
    _on("paho", "Replace {call} with aiomqtt.", _WAITS),
    _on("websocket websockets.sync", "Replace {call} with the asyncio client of websockets.", _WAITS),
    _on("zmq.sugar zmq.backend", "Take the socket from zmq.asyncio.Context and await {call}.", _WAITS),
    _on("serial", "Replace {call} with pyserial-asyncio, or run it through asyncio.to_thread.", _WAITS),
    _on(
        "celery.result rq.job",
        "Poll for the result with await asyncio.sleep() in between, or run {call} through asyncio.to_thread.",
        _WAITS,
    ),
    _on(
        "socket.getaddrinfo socket.gethostbyname socket.gethostbyname_ex socket.gethostbyaddr socket.getfqdn "
        "socket.getnameinfo _socket.getaddrinfo _socket.gethostbyname _socket.gethostbyname_ex "
        "_socket.gethostbyaddr _socket.getnameinfo",
        "Replace {call} with await loop.getaddrinfo() or loop.getnameinfo().",
    ),
    _on("dns.resolver dns.query", "Replace {call} with dns.asyncresolver or dns.asyncquery.", _WAITS),
    _on(
        "socket _socket socketserver",
        "Replace {call} with asyncio streams or loop.sock_* on a non-blocking socket, "
        "or run the library that makes it through asyncio.to_thread.",
        _WAITS,
    ),
    _on(
        "ssl.SSLSocket ssl.SSLContext.wrap_socket ssl.get_server_certificate _ssl._SSLSocket",
        "Replace {call} with asyncio.open_connection(ssl=...), "
        "or run the library that makes it through asyncio.to_thread.",
    ),
    _on("select selectors", "Replace {call} with loop.add_reader() or asyncio streams.", _WAITS),
    # Databases: waiting for the server
    _on(
        "psycopg2",
        "Replace {call} with asyncpg or psycopg.AsyncConnection, or run it through asyncio.to_thread.",
        _WAITS,
    ),
    _on(
        "psycopg.connect psycopg.Connection psycopg.connection psycopg.cursor psycopg.waiting",
        "Replace {call} with await on psycopg.AsyncConnection.",
        _WAITS,
    ),
    _on("pymysql MySQLdb mysql.connector", "Replace {call} with asyncmy or aiomysql.", _WAITS),
    _on("sqlite3 _sqlite3", "Replace {call} with aiosqlite, or run it through asyncio.to_thread.", _WAITS),
    _on(
        "pymongo.MongoClient pymongo.mongo_client pymongo.synchronous pymongo.collection pymongo.cursor "
        "pymongo.database pymongo.pool",
        "Replace {call} with await on pymongo.AsyncMongoClient.",
        _WAITS,
    ),
    _on(
        "redis.Redis redis.client redis.connection redis.cluster redis.sentinel",
        "Replace {call} with await on redis.asyncio.Redis.",
        _WAITS,
    ),
    _on("memcache pymemcache pylibmc", "Replace {call} with aiomcache, or run it through asyncio.to_thread.", _WAITS),
    _on("sqlalchemy", "Replace {call} with an AsyncSession on create_async_engine().", _WAITS),
    _on(
        "cx_Oracle oracledb.connect oracledb.connection.connect oracledb.connection.Connection oracledb.cursor.Cursor",
        "Replace {call} with await on oracledb.connect_async().",
        _WAITS,
    ),
    _on("pyodbc", "Replace {call} with aioodbc, or run it through asyncio.to_thread.", _WAITS),
    _on("cassandra", "Replace {call} with session.execute_async() and a future that its callback completes.", _WAITS),
    _on(
        "snowflake.connector clickhouse_driver clickhouse_connect duckdb neo4j._sync peewee",
        "Run {call} through asyncio.to_thread, or use the library's async client.",
        _WAITS,
    ),
    _on(
        "django.db",
        "Replace {call} with the async ORM (aget(), acreate(), async for), or wrap it in sync_to_async().",
        _WAITS,
    ),
    # Databases: turning rows into objects
    _on(
        "sqlalchemy django.db sqlite3 _sqlite3 psycopg2 psycopg pymysql MySQLdb mysql.connector pymongo peewee "
        "cx_Oracle oracledb pyodbc cassandra",
        "Fetch fewer rows and columns (LIMIT, pages, plain rows instead of objects): {call} spent the time on them.",
        _HOLDS_GIL,
    ),
    # Processes
    _on(
        "subprocess _posixsubprocess",
        "Replace {call} with await asyncio.create_subprocess_exec() and await process.communicate().",
    ),
    _on("os.system posix.system os.popen", "Replace {call} with await asyncio.create_subprocess_shell()."),
    _on(
        "os.wait os.waitpid os.wait3 os.wait4 os.waitid posix.wait posix.waitpid posix.wait3 posix.wait4 posix.waitid",
        "Replace {call} with await process.wait() on an asyncio subprocess.",
    ),
    _on(
        "asyncio.subprocess asyncio.base_subprocess",
        "Keep helper processes running instead of starting one per request: {call} forks on the loop's thread.",
    ),
    _on(
        "os.fork posix.fork os.forkpty posix.forkpty multiprocessing.context.Process.start "
        "multiprocessing.process.BaseProcess.start multiprocessing.popen_fork",
        "Start processes before the loop runs, or run {call} through asyncio.to_thread with the forkserver method.",
    ),
    _on("multiprocessing", "Replace {call} with await loop.run_in_executor() on a ProcessPoolExecutor."),
    # Locks, queues, futures
    _on(
        "threading.Lock threading.RLock threading._RLock _thread.lock _thread.RLock _thread.allocate_lock",
        "Replace {call} with asyncio.Lock, or take the lock inside a function run through asyncio.to_thread.",
        _WAITS,
    ),
    _on(
        "threading.Semaphore threading.Condition threading.Event threading.Barrier",
        "Replace {call} with await on the class of the same name in asyncio.",
        _WAITS,
    ),
    _on(
        # These wait until the new thread runs, and for nothing else.
        "threading.Thread.start concurrent.futures.thread.ThreadPoolExecutor.submit",
        "Start threads before they are needed and keep them: {call} waited for a new thread, which was given no "
        "processor, or not the GIL.",
        _WAITS,
    ),
    _on(
        "threading.Thread.join threading.Thread._wait_for_tstate_lock threading._shutdown",
        "Start the work with asyncio.to_thread and await that, instead of {call}.",
        _WAITS,
    ),
    _on(
        "queue _queue",
        "Replace {call} with await on asyncio.Queue, filled from threads by loop.call_soon_threadsafe().",
        _WAITS,
    ),
    _on(
        "concurrent.futures._base.Future concurrent.futures.Future",
        "Replace {call} with await asyncio.wrap_future(future); with a future of run_coroutine_threadsafe() "
        "for this same loop it never returns.",
        _WAITS,
    ),
    _on(
        "concurrent.futures.wait concurrent.futures.as_completed concurrent.futures._base.wait "
        "concurrent.futures._base.as_completed concurrent.futures._base.Executor.map",
        "Replace {call} with await asyncio.gather() over loop.run_in_executor().",
        _WAITS,
    ),
    _on(
        "concurrent.futures._base.Executor.__exit__ concurrent.futures.thread.ThreadPoolExecutor.shutdown "
        "concurrent.futures.process.ProcessPoolExecutor.shutdown concurrent.futures.ThreadPoolExecutor.shutdown",
        "Keep one executor for the life of the program: leaving its with block or {call} waits for all its work.",
        _WAITS,
    ),
    _on(
        "fcntl.flock fcntl.lockf filelock portalocker",
        "Take the file lock through asyncio.to_thread, or ask without blocking and retry, instead of {call}.",
        _WAITS,
    ),
    # A loop inside the loop
    _on(
        "asyncio.run asyncio.runners asyncio.base_events.BaseEventLoop.run_until_complete "
        "asyncio.base_events.BaseEventLoop.run_forever uvloop.run uvloop.loop.Loop.run_until_complete",
        "Await the coroutine instead of calling {call} while a loop runs.",
    ),
    _on("nest_asyncio", "Await the coroutine and remove nest_asyncio: {call} runs a second loop inside this one."),
    _on(
        "asgiref.sync.AsyncToSync asgiref.sync.async_to_sync anyio._core._eventloop.run",
        "Await the coroutine instead of calling {call} on the loop's thread.",
    ),
    # Files
    _on(
        "os posix posixpath genericpath pathlib shutil tempfile glob mmap fileinput",
        "Run {call} through asyncio.to_thread, or use aiofiles or anyio.Path.",
    ),
    _on(
        "os.fsync os.fdatasync os.sync posix.fsync posix.fdatasync posix.sync",
        "Run {call} through asyncio.to_thread and sync once for many writes.",
    ),
    _on("zipfile tarfile", "Run {call} through {offload}, as one function that does the whole archive."),
    _on(
        "builtins.open io.open _io.open io _io",
        "Run {call} and the reads or writes that follow through asyncio.to_thread, or use aiofiles.",
        _WAITS,
    ),
    # The terminal, logging, debugging
    _on(
        "builtins.input sys.stdin getpass",
        "Read standard input through asyncio.to_thread or loop.connect_read_pipe() instead of {call}.",
    ),
    _on(
        "builtins.print sys.stdout sys.stderr",
        "Log through a QueueHandler instead of {call}, which waits while the reader of the pipe or terminal is slow.",
        _WAITS,
    ),
    _on(
        "logging",
        "Put a logging.handlers.QueueHandler on the logger and the slow handler behind a QueueListener, "
        "so that {call} does not write on the loop.",
    ),
    _on("loguru", "Add the sink with enqueue=True so that {call} does not write on the loop."),
    _on(
        "structlog",
        "Let structlog end in a standard logger with a QueueHandler so that {call} does not write on the loop.",
        _WAITS,
    ),
    _on("pdb bdb debugpy builtins.breakpoint", "Remove the breakpoint: {call} stops the loop until you continue."),
    _on(
        "signal.pause signal.sigwait signal.sigwaitinfo signal.sigtimedwait",
        "Replace {call} with loop.add_signal_handler().",
    ),
    _on("psutil", "Pass interval=None to cpu_percent(), or run {call} through asyncio.to_thread."),
    # Code made or loaded at run time
    _on(
        "importlib _frozen_importlib _frozen_importlib_external builtins.__import__ _imp",
        "Import the module at start-up, at the top of a file, instead of inside the function that runs on the loop.",
    ),
    _on(
        "ast builtins.compile builtins.exec builtins.eval py_compile compileall",
        "Compile once at start-up and keep the code object, or run {call} through {offload}.",
        _COMPUTES,
    ),
    _on("inspect traceback linecache tokenize", "Call {call} less often, or cache its result."),
    _on("gc.collect", "Remove gc.collect() from the request path, or call it when the loop is idle after gc.freeze()."),
    # Data formats
    _on(
        "json _json simplejson requests.models.Response.json httpx._models.Response.json requests.Response.json "
        "httpx.Response.json",
        "Replace {call} with orjson or msgspec, or do it together with what needs the data through {offload}.",
        _COMPUTES,
    ),
    _on(
        "orjson ujson rapidjson msgspec",
        "Split or page the document, or run {call} together with what needs the data through {offload}.",
        _COMPUTES,
    ),
    _on(
        "pickle _pickle cloudpickle dill marshal",
        "Pickle less, or keep the object in the process that uses it: {call} keeps the GIL and a thread does not help.",
        _HOLDS_GIL | {Cause.UNKNOWN},
    ),
    _on(
        "copy.deepcopy copy._reconstruct",
        "Copy only the part that changes, or use immutable data, instead of copy.deepcopy() of the whole.",
        _COMPUTES,
    ),
    _on(
        "yaml ruamel.yaml",
        "Load YAML at start-up or with yaml.CSafeLoader, or run {call} through {offload}.",
        _COMPUTES,
    ),
    _on(
        "xml lxml defusedxml bs4 html.parser html5lib xmltodict pyexpat",
        "Run {call} and what reads the tree through {offload}.",
        _COMPUTES,
    ),
    _on(
        "csv _csv openpyxl xlrd xlsxwriter",
        "Read and write the table in one function run through {offload}, not with {call} on the loop.",
        _COMPUTES,
    ),
    _on(
        "msgpack cbor2 bson google.protobuf avro fastavro tomllib",
        "Send smaller messages, or run {call} together with what needs the data through {offload}.",
        _COMPUTES,
    ),
    _on(
        "pydantic pydantic_core marshmallow attr attrs cattrs dataclasses.asdict",
        "Validate or convert fewer objects at a time, or run {call} through {offload}.",
        _COMPUTES,
    ),
    _on(
        "fastapi.encoders fastapi.routing.serialize_response",
        "Return a Response with ready bytes (orjson) or a page of the data instead of leaving it to {call}.",
        _COMPUTES,
    ),
    _on(
        "jinja2 mako django.template chameleon",
        "Cache compiled templates and fragments and render less per page, or run {call} through {offload}.",
        _COMPUTES,
    ),
    _on(
        "markdown mistune docutils pygments reportlab weasyprint",
        "Cache the rendered document, or run {call} through {offload}.",
        _COMPUTES,
    ),
    # Cryptography and compression
    _on(
        "hashlib _hashlib _sha2 _md5 _blake2 hmac zlib.crc32 binascii",
        "Run {call} of large data through {offload}, in one call for all of it.",
        _COMPUTES,
    ),
    _on(
        "hashlib.pbkdf2_hmac hashlib.scrypt _hashlib.pbkdf2_hmac _hashlib.scrypt bcrypt _bcrypt argon2 passlib "
        "werkzeug.security django.contrib.auth.hashers pwdlib",
        "Run {call} through {offload}: password hashing is slow on purpose.",
        _COMPUTES,
    ),
    _on(
        "cryptography Crypto nacl rsa ecdsa OpenSSL",
        "Create keys ahead of time, and run {call} through {offload}.",
        _COMPUTES,
    ),
    _on(
        "jwt jose authlib jwcrypto",
        "Cache verified tokens and loaded keys, prefer EdDSA or ES256 to RSA for signing, or run {call} "
        "through {offload}.",
        _COMPUTES,
    ),
    _on(
        "zlib gzip bz2 lzma _bz2 _lzma compression zstandard zstd pyzstd brotli lz4 snappy",
        "Run {call} through {offload}, or lower the compression level.",
        _COMPUTES,
    ),
    # Images, numbers, models
    _on("PIL cv2 imageio skimage wand pyvips", "Run {call}, from opening to saving the image, through {offload}."),
    _on(
        "numpy scipy numba statsmodels networkx shapely",
        "Run {call} through {offload}, as one function from input to result.",
    ),
    _on("pandas polars pyarrow dask", "Run {call} through {offload}, as one function from source to small result."),
    _on(
        "sklearn xgboost lightgbm torch tensorflow onnxruntime transformers spacy",
        "Run {call} through {offload}, with the model loaded once in the worker and requests batched.",
    ),
    # Text and pure computing
    _on(
        "re _sre regex",
        "Rewrite the pattern so that it cannot backtrack (possessive or atomic groups, no nested repeats), "
        "bound the input of {call}, or run it through {offload}.",
        _COMPUTES,
    ),
    _on(
        "re.compile re._compile re._compiler re._parser regex._regex_core",
        "Compile the pattern once at import instead of calling {call} on the loop.",
        _COMPUTES,
    ),
    _on(
        "difflib rapidfuzz Levenshtein thefuzz",
        "Bound the length of the inputs of {call}, or run it through {offload}.",
        _COMPUTES,
    ),
    _on(
        "itertools functools.reduce heapq _heapq bisect statistics random fractions decimal",
        "Work on fewer items at a time, or run the loop around {call} through {offload}.",
        _COMPUTES,
    ),
    _on(
        "builtins.sorted builtins.list.sort",
        "Sort in the database or keep the data sorted (bisect, heapq) instead of {call}, or run it through {offload}.",
        _COMPUTES,
    ),
    _on(
        "builtins.sum builtins.min builtins.max builtins.any builtins.all builtins.map builtins.filter "
        "builtins.list builtins.dict builtins.set builtins.tuple",
        "Split {call} over fewer items with await asyncio.sleep(0) in between, or run it through {offload}.",
        _COMPUTES,
    ),
    _on(
        "builtins.pow builtins.int builtins.str builtins.repr math",
        "Bound the size of the numbers and objects given to {call}, or run it through {offload}.",
        _COMPUTES,
    ),
    # Methods of an object of unknown type: only where name and cause together are conclusive
    _on(
        ".acquire .__enter__",
        "Replace {call} of the thread lock with asyncio.Lock, or take it inside asyncio.to_thread.",
        _FOR_LOCK,
    ),
    _on(".wait", "Replace {call} with await on an asyncio.Event or asyncio.Condition.", _FOR_LOCK),
    _on(
        ".wait .communicate",
        "Start the process with asyncio.create_subprocess_exec() and await its communicate() instead of {call}.",
        _IN_SYSCALL,
    ),
    _on(".communicate", "Await communicate() of an asyncio subprocess instead of {call}.", _FOR_LOCK),
    _on(".get .put", "Replace {call} of the thread queue with await on asyncio.Queue.", _FOR_LOCK),
    _on(
        ".result .exception",
        "Replace {call} with await asyncio.wrap_future(), or start the work with await loop.run_in_executor().",
        _TO_BE_WOKEN,
    ),
    _on(
        ".join",
        "Await the work (asyncio.to_thread, asyncio.Queue.join) instead of {call} of a thread, process or queue.",
        _TO_BE_WOKEN,
    ),
    _on(".shutdown", "Run {call} of the executor through asyncio.to_thread, after the loop's work.", _FOR_LOCK),
    _on(
        ".execute .executemany .executescript .fetchone .fetchmany .fetchall .commit .rollback",
        "Replace {call} with the async driver of the database, or run it through asyncio.to_thread.",
        _ON_SQL,
    ),
    _on(
        ".fetchone .fetchmany .fetchall",
        "Fetch fewer rows and columns (LIMIT, pages): {call} spent the time on turning them into objects.",
        _HOLDS_GIL,
    ),
    _on(
        ".recv .recv_into .recvfrom .recvmsg .accept .connect .send .sendall .sendto .sendfile .do_handshake",
        "Replace {call} with asyncio streams or loop.sock_* on a non-blocking socket, "
        "or run it through asyncio.to_thread.",
        _IN_SYSCALL,
    ),
    _on(
        ".read .readinto .readline .readlines .write .writelines .flush .close .truncate",
        "Run {call} through asyncio.to_thread, or use aiofiles for files and asyncio streams for pipes.",
        _IN_SYSCALL,
    ),
    _on(".select .poll", "Watch the descriptor with loop.add_reader() instead of {call}.", _IN_SYSCALL),
    _on(
        ".match .search .fullmatch .finditer .findall .sub .subn",
        "Rewrite the pattern of {call} so that it cannot backtrack, bound its input, or run it through {offload}.",
        frozenset({Cause.NATIVE_GIL}),
    ),
    _on(
        ".sort",
        "Sort in the database or keep the data sorted instead of {call}, or run it through {offload}.",
        _HOLDS_GIL,
    ),
    _on(".render", "Cache rendered fragments, or run {call} through {offload}.", _HOLDS_GIL),
)
"""All remedies. A longer pattern wins over a shorter one; no pattern occurs twice for one cause."""

"""The remedy table: one sentence for each kind of blocking call, by operation and cause. Data; read by ``remedy.py``.

The outermost call of the culprit's line that has an entry decides, and of several entries the longest pattern. Where
none has, the cause alone does: :mod:`loopwatch.diagnosis.cause_facts`. ``docs/remedies.md`` shows the table, and
``benchmarks/remedies.py`` measures each row before and after its advice is followed.
"""

# ruff: noqa: E501 - a row is a record

from __future__ import annotations

from loopwatch.core.dataclasses import dataclass
from loopwatch.diagnosis.cause_facts import those
from loopwatch.events import Cause

ANY = those("is_of_call")
"""Causes for which the call that blocked matters."""

HOLDS_GIL = those("keeps_gil")

_COMPUTES = HOLDS_GIL | {Cause.NATIVE, Cause.UNKNOWN}
_FEEDS = HOLDS_GIL | {Cause.NATIVE, Cause.GIL}
_WAITS = ANY - HOLDS_GIL
_WAITS_ONLY = _WAITS - {Cause.NATIVE}
_RUNS_CODE = HOLDS_GIL | {Cause.NATIVE}
_COLLECTS = ANY | {Cause.GC}
_IN_SYSCALL = frozenset({Cause.IO})
_FOR_LOCK = frozenset({Cause.LOCK})
_TO_BE_WOKEN = frozenset({Cause.IO, Cause.LOCK})
_ON_SQL = frozenset({Cause.IO, Cause.LOCK, Cause.NATIVE})


@dataclass(frozen=True, slots=True)
class Advice:
    """The remedy for some calls: one row.

    Attributes:
        operation: what the calls do, unique in the table.
        patterns: dotted prefixes, matched on whole segments: ``os`` matches ``os.stat`` but not ``osgeo``. A leading
            dot stands for a method of an object of unknown type.
        text: the sentence for a coroutine; ``{call}`` is the call that matched, ``{offload}`` the executor that suits
            the cause, ``{thread}`` a thread.
        reason: why the loop is held, and why the advice helps.
        reference: URL of the documentation that the advice relies on.
        causes: causes for which it is right.
        form: what a task uses instead of the call, where ``text`` has to be awaited; "" where it need not be.
        is_bound: whether the call needs an object that other processes have no use of, such as a socket.
        refines: whether the row also decides as an inner call of the package that the outermost entry names.
    """

    operation: str
    patterns: tuple[str, ...]
    text: str
    reason: str
    reference: str
    causes: frozenset[Cause] = ANY
    form: str = ""
    refines: bool = False
    is_bound: bool = False

    @property
    def moves(self) -> bool:
        """Whether the advice is to run the call elsewhere."""
        return "{offload}" in self.text or "{thread}" in self.text


def _on(  # noqa: PLR0917 - the columns of the table
    operation: str, patterns: str, text: str, reason: str, reference: str,
    causes: frozenset[Cause] = ANY, *, form: str = "", refines: bool = False, is_bound: bool = False,
) -> Advice:  # fmt: skip
    return Advice(operation, tuple(patterns.split()), text, reason, reference, causes, form, refines, is_bound)


_PY = "https://docs.python.org/3/library/"
_SYNC_SERVER = "the thread waits for the server; the asyncio client gives the loop back meanwhile"
_KEEPS = "the work is the same, but another process does it"

# Frames carry the module that defines a function, not the one it is imported from (`httpx.get` is
# `httpx._api.get`), C functions that of their extension (`os.stat` is `posix.stat`): both spellings are listed.
# Packages with an asyncio API are listed by the modules of their blocking API.
# fmt: off
TABLE: tuple[Advice, ...] = (
    # Sleeping and retrying
    _on("sleep", "time.sleep",
        "Replace time.sleep() with await asyncio.sleep(), or call a library that sleeps through {thread}.",
        "the thread sleeps; asyncio.sleep() sets a timer", _PY + "asyncio-task.html#asyncio.sleep",
        form="asyncio.sleep()"),
    _on("retry with tenacity", "tenacity.Retrying tenacity.nap",
        "Decorate a coroutine function or use tenacity.AsyncRetrying instead of {call}, which sleeps on the loop.",
        "it sleeps between attempts", "https://tenacity.readthedocs.io/en/latest/#async-and-retry",
        form="tenacity.AsyncRetrying"),
    _on("retry with backoff", "backoff._sync",
        "Decorate a coroutine function with backoff instead of {call}, which sleeps on the loop.",
        "it sleeps between attempts; for coroutine functions backoff awaits asyncio.sleep()",
        "https://github.com/litl/backoff#asynchronous-code", _WAITS, form="a coroutine function that backoff decorates"),
    # HTTP clients
    _on("HTTP client without asyncio", "requests urllib3 urllib.request http.client httplib2 pycurl",
        "Replace {call} with await on an httpx.AsyncClient or aiohttp, or run it through {thread}.",
        _SYNC_SERVER, "https://www.python-httpx.org/async/", form="httpx.AsyncClient or aiohttp"),
    _on("body of an HTTP response", "requests.models.Response.content requests.models.Response.iter_content",
        "Stream the body with httpx.AsyncClient.stream(), or download it in one function run through {thread}.",
        "the body is read on the loop, chunk by chunk", "https://www.python-httpx.org/async/#streaming-responses",
        _WAITS, form="httpx.AsyncClient.stream()"),
    _on("httpx.Client", "httpx.Client httpx.get httpx.post httpx.request httpx._api httpx._client.Client",
        "Replace {call} with await on an httpx.AsyncClient that is created once.",
        _SYNC_SERVER, "https://www.python-httpx.org/async/", form="an httpx.AsyncClient that is created once"),
    _on("TLS context, HTTP client", "httpx.AsyncClient httpx._client.AsyncClient.__init__ httpx._client.Client.__init__ "
        "httpx._config.create_ssl_context ssl.create_default_context ssl.SSLContext.load_verify_locations "
        "ssl.SSLContext.load_default_certs ssl.SSLContext.set_default_verify_paths _ssl._SSLContext "
        "requests.adapters.HTTPAdapter.init_poolmanager",
        "Create the client or TLS context once at start-up and share it: {call} loads all certificates each time.",
        "parsing the certificate store takes 10 to 20 ms", "https://www.python-httpx.org/advanced/ssl/", refines=True),
    _on("certificate chain of a TLS server", "ssl.SSLContext.load_cert_chain",
        "Load the certificate once at start-up and keep the SSLContext instead of calling {call} per connection.",
        "it reads and parses key and chain from disk", _PY + "ssl.html#ssl.SSLContext.load_cert_chain"),
    _on("AWS request", "boto3 botocore s3transfer",
        "Replace {call} with aioboto3 or aiobotocore, or run it through {thread}.",
        _SYNC_SERVER, "https://aiobotocore.aio-libs.org/", form="aioboto3 or aiobotocore"),
    _on("AWS client", "boto3.client boto3.resource boto3.session.Session.client boto3.session.Session.resource "
        "botocore.session.Session.create_client botocore.loaders",
        "Create the AWS client once at start-up and share it: {call} parses large service models.",
        "each client loads and parses the JSON model of its service",
        "https://boto3.amazonaws.com/v1/documentation/api/latest/guide/clients.html"),
    _on("Google Cloud request", "google.cloud google.api_core google.auth",
        "Replace {call} with the library's async client, or run it through {thread}.",
        _SYNC_SERVER, "https://cloud.google.com/python/docs/reference", _WAITS, form="the library's async client"),
    _on("Azure request", "azure.core azure.storage azure.cosmos azure.identity azure.servicebus azure.keyvault",
        "Replace {call} with the client of the same name in the package's aio module.",
        _SYNC_SERVER, "https://learn.microsoft.com/azure/developer/python/sdk/azure-sdk-library-usage-patterns", _WAITS,
        form="the client of the aio module"),
    _on("OpenAI request", "openai.OpenAI openai._client.OpenAI openai._base_client.SyncAPIClient openai.resources",
        "Replace {call} with await on an openai.AsyncOpenAI client, and async for over its stream.",
        _SYNC_SERVER, "https://github.com/openai/openai-python#async-usage", _WAITS, form="openai.AsyncOpenAI"),
    _on("Anthropic request", "anthropic.Anthropic anthropic._client.Anthropic anthropic._base_client.SyncAPIClient "
        "anthropic.resources anthropic.lib.streaming._messages.MessageStream",
        "Replace {call} with await on an anthropic.AsyncAnthropic client, and async for over its stream.",
        _SYNC_SERVER, "https://github.com/anthropics/anthropic-sdk-python#async-usage", _WAITS,
        form="anthropic.AsyncAnthropic"),
    _on("LLM framework", "langchain langchain_core litellm llama_index mistralai cohere ollama groq",
        "Replace {call} with its asynchronous form (ainvoke(), astream(), acompletion(), AsyncClient).",
        _SYNC_SERVER, "https://python.langchain.com/docs/concepts/async/", _WAITS,
        form="ainvoke(), astream() or acompletion()"),
    _on("search engine client", "elasticsearch.Elasticsearch elasticsearch._sync elasticsearch.client "
        "elasticsearch.transport elastic_transport._transport opensearchpy.OpenSearch opensearchpy.client "
        "opensearchpy.transport",
        "Replace {call} with await on AsyncElasticsearch or AsyncOpenSearch.",
        _SYNC_SERVER, "https://elasticsearch-py.readthedocs.io/en/latest/async.html", _WAITS,
        form="AsyncElasticsearch or AsyncOpenSearch"),
    # Other network protocols
    _on("gRPC call", "grpc._channel grpc._common.wait grpc._utilities",
        "Open the channel with grpc.aio and await the call instead of {call}.",
        "the stub waits on a condition for the reply", "https://grpc.github.io/grpc/python/grpc_asyncio.html", _WAITS,
        form="a grpc.aio channel"),
    _on("SMTP", "smtplib", "Replace {call} with await aiosmtplib.send(), or send through {thread}.",
        _SYNC_SERVER, "https://aiosmtplib.readthedocs.io/", _WAITS, form="aiosmtplib.send()"),
    _on("FTP", "ftplib", "Replace {call} with aioftp, or run it through {thread}.",
        _SYNC_SERVER, "https://aioftp.readthedocs.io/", _WAITS, form="aioftp"),
    _on("IMAP, POP", "imaplib poplib", "Replace {call} with aioimaplib, or run it through {thread}.",
        _SYNC_SERVER, "https://github.com/bamthomas/aioimaplib", _WAITS, form="aioimaplib"),
    _on("SSH", "paramiko fabric", "Replace {call} with asyncssh, or run it through {thread}.",
        _SYNC_SERVER, "https://asyncssh.readthedocs.io/", _WAITS, form="asyncssh"),
    _on("LDAP", "ldap ldap3", "Replace {call} with bonsai's asyncio client, or run it through {thread}.",
        _SYNC_SERVER, "https://bonsai.readthedocs.io/en/latest/advanced.html#asynchronous-operations", _WAITS,
        form="bonsai's asyncio client"),
    _on("Kafka (kafka-python)", "kafka", "Replace {call} of kafka-python with await on aiokafka.",
        _SYNC_SERVER, "https://aiokafka.readthedocs.io/", _WAITS, form="aiokafka"),
    _on("Kafka (confluent)", "confluent_kafka", "Replace {call} with aiokafka, or poll it in a thread of its own.",
        _SYNC_SERVER, "https://docs.confluent.io/kafka-clients/python/current/overview.html", _WAITS, form="aiokafka"),
    _on("AMQP", "pika", "Replace {call} with await on aio-pika.",
        _SYNC_SERVER, "https://docs.aio-pika.com/", _WAITS, form="aio-pika"),
    _on("MQTT", "paho", "Replace {call} with await on aiomqtt.",
        _SYNC_SERVER, "https://aiomqtt.bo3hm.com/", _WAITS, form="aiomqtt"),
    _on("WebSocket client", "websocket websockets.sync",
        "Replace {call} with await on websockets.connect(), the asyncio client.",
        _SYNC_SERVER, "https://websockets.readthedocs.io/en/stable/reference/asyncio/client.html", _WAITS,
        form="websockets.connect()"),
    _on("ZeroMQ", "zmq.sugar zmq.backend", "Take the socket from zmq.asyncio.Context and await {call}.",
        "it waits for a message", "https://pyzmq.readthedocs.io/en/latest/api/zmq.asyncio.html", _WAITS,
        form="a socket of zmq.asyncio.Context", is_bound=True),
    _on("serial port", "serial", "Replace {call} with pyserial-asyncio, or run it through {thread}.",
        "it waits for bytes from the device", "https://pyserial-asyncio.readthedocs.io/", _WAITS,
        form="pyserial-asyncio", is_bound=True),
    _on("result of a task queue", "celery.result rq.job",
        "Poll for the result with await asyncio.sleep() in between, or run {call} through {thread}.",
        "it waits until a worker is done", "https://docs.celeryq.dev/en/stable/reference/celery.result.html", _WAITS,
        form="asyncio.sleep() between polls"),
    _on("DNS", "socket.getaddrinfo socket.gethostbyname socket.gethostbyname_ex socket.gethostbyaddr socket.getfqdn "
        "socket.getnameinfo _socket.getaddrinfo _socket.gethostbyname _socket.gethostbyname_ex "
        "_socket.gethostbyaddr _socket.getnameinfo",
        "Replace {call} with await loop.getaddrinfo() or loop.getnameinfo().",
        "the resolver waits for a name server, up to its time-out",
        _PY + "asyncio-eventloop.html#asyncio.loop.getaddrinfo", form="loop.getaddrinfo()"),
    _on("DNS (dnspython)", "dns.resolver dns.query",
        "Replace {call} with await on dns.asyncresolver or dns.asyncquery.",
        "it waits for a name server", "https://dnspython.readthedocs.io/en/latest/async.html", _WAITS,
        form="dns.asyncresolver or dns.asyncquery"),
    _on("socket", "socket _socket socketserver",
        "Replace {call} with asyncio streams or loop.sock_* on a non-blocking socket, "
        "or run the library that makes it through {thread}.",
        "the socket blocks until the peer answers", _PY + "asyncio-stream.html", _WAITS, form="asyncio streams", is_bound=True),
    _on("TLS socket", "ssl.SSLSocket ssl.SSLContext.wrap_socket ssl.get_server_certificate _ssl._SSLSocket",
        "Replace {call} with asyncio.open_connection(ssl=...), or run the library that makes it through {thread}.",
        "handshake, read and write wait for the peer", _PY + "asyncio-stream.html#asyncio.open_connection",
        form="asyncio.open_connection(ssl=...)", is_bound=True),
    _on("select", "select selectors", "Replace {call} with loop.add_reader() or asyncio streams.",
        "a second selector waits inside the loop's pass", _PY + "asyncio-eventloop.html#asyncio.loop.add_reader",
        _WAITS, is_bound=True),
    # Databases: waiting for the server
    _on("PostgreSQL (psycopg2)", "psycopg2",
        "Replace {call} with await on asyncpg or psycopg.AsyncConnection, or run it through {thread}.",
        _SYNC_SERVER, "https://www.psycopg.org/psycopg3/docs/advanced/async.html", _WAITS,
        form="asyncpg or psycopg.AsyncConnection"),
    _on("PostgreSQL (psycopg)", "psycopg.connect psycopg.Connection psycopg.connection psycopg.cursor psycopg.waiting "
        "psycopg_pool.pool psycopg_pool.ConnectionPool",
        "Replace {call} with await on psycopg.AsyncConnection.",
        _SYNC_SERVER, "https://www.psycopg.org/psycopg3/docs/advanced/async.html", _WAITS,
        form="psycopg.AsyncConnection"),
    _on("MySQL", "pymysql MySQLdb mysql.connector", "Replace {call} with await on asyncmy or aiomysql.",
        _SYNC_SERVER, "https://aiomysql.readthedocs.io/", _WAITS, form="asyncmy or aiomysql"),
    _on("SQLite", "sqlite3 _sqlite3", "Replace {call} with await on aiosqlite, or run it through {thread}.",
        "SQLite runs in the calling thread and releases the GIL; aiosqlite gives it one of its own",
        "https://aiosqlite.omnilib.dev/", _WAITS, form="aiosqlite"),
    _on("MongoDB", "pymongo.MongoClient pymongo.mongo_client pymongo.synchronous pymongo.collection pymongo.cursor "
        "pymongo.database pymongo.pool",
        "Replace {call} with await on pymongo.AsyncMongoClient.",
        _SYNC_SERVER, "https://pymongo.readthedocs.io/en/stable/async-tutorial.html", _WAITS,
        form="pymongo.AsyncMongoClient"),
    _on("Redis", "redis.Redis redis.client redis.connection redis.cluster redis.sentinel redis.commands",
        "Replace {call} with await on redis.asyncio.Redis.",
        _SYNC_SERVER, "https://redis.readthedocs.io/en/stable/examples/asyncio_examples.html", _WAITS,
        form="redis.asyncio.Redis"),
    _on("Redis with large replies", "redis._parsers redis.client redis.connection",
        "Ask {call} for less (SCAN, HSCAN, ZRANGE with limits, pipelines of a bounded size).",
        "parsing a large reply is Python code; asyncio does not make it shorter",
        "https://redis.io/docs/latest/commands/scan/", HOLDS_GIL),
    _on("Memcached", "memcache pymemcache pylibmc", "Replace {call} with await on aiomcache, or run it through {thread}.",
        _SYNC_SERVER, "https://github.com/aio-libs/aiomcache", _WAITS, form="aiomcache"),
    _on("SQLAlchemy without asyncio", "sqlalchemy",
        "Replace {call} with await on an AsyncSession of create_async_engine().",
        _SYNC_SERVER, "https://docs.sqlalchemy.org/en/20/orm/extensions/asyncio.html", _WAITS,
        form="an AsyncSession of create_async_engine()"),
    _on("Oracle", "cx_Oracle oracledb.connect oracledb.connection.connect oracledb.connection.Connection "
        "oracledb.cursor.Cursor",
        "Replace {call} with await on oracledb.connect_async().",
        _SYNC_SERVER, "https://python-oracledb.readthedocs.io/en/latest/user_guide/asyncio.html", _WAITS,
        form="oracledb.connect_async()"),
    _on("ODBC", "pyodbc", "Replace {call} with await on aioodbc, or run it through {thread}.",
        _SYNC_SERVER, "https://aioodbc.readthedocs.io/", _WAITS, form="aioodbc"),
    _on("Cassandra", "cassandra",
        "Replace {call} with session.execute_async() and a future that its callback completes.",
        _SYNC_SERVER, "https://docs.datastax.com/en/developer/python-driver/latest/api/cassandra/cluster/", _WAITS),
    _on("other databases", "snowflake.connector clickhouse_driver clickhouse_connect duckdb neo4j._sync peewee",
        "Run {call} through {thread}, or use the library's async client.",
        _SYNC_SERVER, _PY + "asyncio-task.html#asyncio.to_thread", _WAITS, form="the library's async client"),
    _on("Django ORM", "django.db",
        "Replace {call} with the async ORM (await aget(), acreate(), async for), or wrap it in sync_to_async().",
        _SYNC_SERVER, "https://docs.djangoproject.com/en/stable/topics/async/", _WAITS,
        form="the async ORM (aget(), acreate())"),
    # Databases: turning rows into objects, and objects into rows
    _on("rows read by SQLAlchemy", "sqlalchemy",
        "Fetch fewer rows (LIMIT, session.stream() with yield_per) or plain columns instead of objects: {call} spent "
        "the time on making them.",
        "turning rows into objects is Python code, with an async driver too",
        "https://docs.sqlalchemy.org/en/20/orm/queryguide/api.html#fetching-large-result-sets-with-yield-per",
        HOLDS_GIL),
    _on("rows written by SQLAlchemy", "sqlalchemy.orm.session.Session.flush sqlalchemy.orm.session.Session.commit "
        "sqlalchemy.orm.session.Session.add_all sqlalchemy.orm.session.Session._flush sqlalchemy.orm.unitofwork "
        "sqlalchemy.orm.persistence sqlalchemy.orm.bulk_persistence sqlalchemy.sql.dml sqlalchemy.sql.crud "
        "sqlalchemy.ext.asyncio.session.AsyncSession.flush sqlalchemy.ext.asyncio.session.AsyncSession.commit "
        "sqlalchemy.ext.asyncio.session.AsyncSession.add_all sqlalchemy.engine.default.DefaultDialect.do_executemany "
        "sqlalchemy.engine.default.DefaultDialect._deliver_insertmanyvalues_batches",
        "Insert in bulk: pass plain dicts to insert() in pieces of some hundred rows, and no objects to {call}.",
        "the unit of work handles each object in Python; a bulk insert skips it",
        "https://docs.sqlalchemy.org/en/20/orm/queryguide/dml.html#orm-bulk-insert-statements", HOLDS_GIL,
        refines=True),
    _on("rows read by other drivers", "django.db sqlite3 _sqlite3 psycopg2 psycopg pymysql MySQLdb mysql.connector "
        "peewee cx_Oracle oracledb pyodbc cassandra",
        "Fetch fewer rows and columns (LIMIT, pages, plain rows instead of objects): {call} spent the time on them.",
        "turning rows into objects is the client's work", "https://use-the-index-luke.com/no-offset", HOLDS_GIL),
    _on("rows written by Django", "django.db.models.base.Model.save django.db.models.query.QuerySet.create "
        "django.db.models.sql.compiler.SQLInsertCompiler",
        "Insert with bulk_create(), or abulk_create() where there is a coroutine, instead of one {call} per object.",
        "each save() builds and runs a statement of its own",
        "https://docs.djangoproject.com/en/stable/ref/models/querysets/#bulk-create", HOLDS_GIL, refines=True),
    _on("documents read from MongoDB", "pymongo",
        "Fetch fewer documents and fields (projection, limit, batch_size): {call} spent the time on decoding BSON.",
        "decoding is the client's work, with the async client too",
        "https://www.mongodb.com/docs/manual/tutorial/project-fields-from-query-results/", HOLDS_GIL),
    # Processes
    _on("subprocess", "subprocess _posixsubprocess",
        "Replace {call} with await asyncio.create_subprocess_exec() and await process.communicate().",
        "it waits until the command ends", _PY + "asyncio-subprocess.html", form="asyncio.create_subprocess_exec()"),
    _on("shell command", "os.system posix.system os.popen",
        "Replace {call} with await asyncio.create_subprocess_shell().",
        "it waits until the command ends", _PY + "asyncio-subprocess.html#asyncio.create_subprocess_shell",
        form="asyncio.create_subprocess_shell()"),
    _on("wait for a child", "os.wait os.waitpid os.wait3 os.wait4 os.waitid posix.wait posix.waitpid posix.wait3 "
        "posix.wait4 posix.waitid",
        "Replace {call} with await process.wait() on an asyncio subprocess.",
        "it waits until the child ends", _PY + "asyncio-subprocess.html#asyncio.subprocess.Process.wait",
        form="wait() of an asyncio subprocess"),
    _on("start of an asyncio subprocess", "asyncio.subprocess asyncio.base_subprocess",
        "Keep helper processes running instead of starting one per request: {call} forks on the loop's thread.",
        "forking a large process takes tens of ms", _PY + "asyncio-subprocess.html"),
    _on("start of a process", "os.fork posix.fork os.forkpty posix.forkpty multiprocessing.context.Process.start "
        "multiprocessing.process.BaseProcess.start multiprocessing.popen_fork multiprocessing.popen_spawn_posix "
        "multiprocessing.popen_forkserver",
        "Start processes before the loop runs, or run {call} through {thread} with the forkserver method.",
        "a fork copies the page tables; spawn pickles its arguments",
        _PY + "multiprocessing.html#contexts-and-start-methods", is_bound=True),
    _on("multiprocessing queue or pipe", "multiprocessing.queues multiprocessing.connection multiprocessing.managers",
        "Run {call} through {thread}, or watch the connection with loop.add_reader().",
        "it waits until another process sends", _PY + "asyncio-eventloop.html#asyncio.loop.add_reader", _WAITS_ONLY, is_bound=True),
    _on("payload sent to another process", "asyncio.base_events.BaseEventLoop.run_in_executor concurrent.futures.process "
        "multiprocessing.reduction multiprocessing.queues multiprocessing.connection multiprocessing.managers "
        "multiprocessing.queues.Queue._feed",
        "Send less to the other process (an id, a path, a loopwatch.SharedBuffer): pickling the arguments or the "
        "result of {call} keeps the GIL.",
        "a pool pickles in this process, also in a thread of it", _PY + "multiprocessing.shared_memory.html", _FEEDS),
    _on("multiprocessing pool", "multiprocessing.pool",
        "Use its asynchronous form ({call} becomes apply_async() or map_async() with a callback that completes a "
        "future), or await loop.run_in_executor() on a ProcessPoolExecutor.",
        "it waits for the workers", _PY + "multiprocessing.html#multiprocessing.pool.Pool.apply_async",
        form="loop.run_in_executor() on a ProcessPoolExecutor"),
    _on("join of a process", "multiprocessing.process.BaseProcess.join multiprocessing.popen_fork.Popen.wait",
        "Run {call} through {thread}, or watch process.sentinel with loop.add_reader().",
        "it waits until the process ends", _PY + "multiprocessing.html#multiprocessing.Process.sentinel", is_bound=True),
    _on("multiprocessing lock", "multiprocessing.synchronize",
        "Take the lock inside a function run through {thread}, instead of {call} on the loop.",
        "it waits for another process", _PY + "multiprocessing.html#synchronization-primitives", _WAITS, is_bound=True),
    _on("other multiprocessing", "multiprocessing",
        "Run {call} through {thread}, so that the loop does not wait for the other process.",
        "it waits for another process", _PY + "asyncio-task.html#asyncio.to_thread", _WAITS, is_bound=True),
    # Locks, queues, futures
    _on("thread lock", "threading.Lock threading.RLock threading._RLock _thread.lock _thread.RLock "
        "_thread.allocate_lock",
        "Replace {call} with asyncio.Lock, or take the lock inside a function run through {thread}.",
        "it waits for another thread", _PY + "asyncio-sync.html#asyncio.Lock", _WAITS, form="asyncio.Lock", is_bound=True),
    _on("thread event, condition, semaphore",
        "threading.Semaphore threading.Condition threading.Event threading.Barrier",
        "Replace {call} with await on the class of the same name in asyncio.",
        "it waits for another thread", _PY + "asyncio-sync.html", _WAITS, form="the class of the same name in asyncio"),
    # These wait until the new thread runs, and for nothing else.
    _on("start of a thread", "threading.Thread.start concurrent.futures.thread.ThreadPoolExecutor.submit",
        "Start threads before they are needed and keep them: {call} waited for a new thread, which was given no "
        "processor, or not the GIL.",
        "start() waits until the thread runs", _PY + "concurrent.futures.html#threadpoolexecutor", _WAITS),
    _on("join of a thread", "threading.Thread.join threading.Thread._wait_for_tstate_lock threading._shutdown",
        "Start the work with asyncio.to_thread and await that, instead of {call}.",
        "it waits until the thread ends", _PY + "asyncio-task.html#asyncio.to_thread", _WAITS,
        form="asyncio.to_thread()"),
    _on("thread queue", "queue _queue",
        "Replace {call} with await on asyncio.Queue, filled from threads by loop.call_soon_threadsafe().",
        "it waits until another thread puts an item", _PY + "asyncio-queue.html", _WAITS, form="asyncio.Queue"),
    _on("result of a future", "concurrent.futures._base.Future concurrent.futures.Future",
        "Replace {call} with await asyncio.wrap_future(future); with a future of run_coroutine_threadsafe() "
        "for this same loop it never returns.",
        "it waits until another thread is done", _PY + "asyncio-future.html#asyncio.wrap_future", _WAITS,
        form="asyncio.wrap_future()"),
    _on("results of several futures", "concurrent.futures.wait concurrent.futures.as_completed "
        "concurrent.futures._base.wait concurrent.futures._base.as_completed concurrent.futures._base.Executor.map",
        "Replace {call} with await asyncio.gather() over loop.run_in_executor().",
        "it waits until other threads are done", _PY + "asyncio-eventloop.html#asyncio.loop.run_in_executor", _WAITS,
        form="asyncio.gather() over loop.run_in_executor()"),
    _on("shutdown of an executor", "concurrent.futures._base.Executor.__exit__ "
        "concurrent.futures.thread.ThreadPoolExecutor.shutdown "
        "concurrent.futures.process.ProcessPoolExecutor.shutdown concurrent.futures.ThreadPoolExecutor.shutdown",
        "Keep one executor for the life of the program: leaving its with block or {call} waits for all its work.",
        "shutdown(wait=True) joins the workers", _PY + "concurrent.futures.html#concurrent.futures.Executor.shutdown",
        _WAITS),
    _on("file lock", "fcntl.flock fcntl.lockf filelock portalocker",
        "Take the file lock through {thread}, or ask without blocking and retry, instead of {call}.",
        "it waits for another process", "https://py-filelock.readthedocs.io/", _WAITS, is_bound=True),
    # A loop inside the loop, and the loop's own functions
    _on("loop inside the loop", "asyncio.run asyncio.runners asyncio.base_events.BaseEventLoop.run_until_complete "
        "asyncio.base_events.BaseEventLoop.run_forever uvloop.run uvloop.loop.Loop.run_until_complete",
        "Await the coroutine instead of calling {call} while a loop runs.",
        "the outer loop stands still meanwhile", _PY + "asyncio-runner.html", form="the coroutine itself"),
    _on("nest_asyncio", "nest_asyncio",
        "Await the coroutine and remove nest_asyncio: {call} runs a second loop inside this one.",
        "callbacks of the outer pass wait for the inner loop", "https://github.com/erdewit/nest_asyncio",
        form="the coroutine itself"),
    _on("coroutine run from sync code", "asgiref.sync.AsyncToSync asgiref.sync.async_to_sync "
        "anyio._core._eventloop.run anyio.run",
        "Await the coroutine instead of calling {call} on the loop's thread.",
        "the loop's thread waits for a coroutine", "https://docs.djangoproject.com/en/stable/topics/async/",
        form="the coroutine itself"),
    _on("many tasks at once", "asyncio.tasks asyncio.taskgroups asyncio.create_task asyncio.gather asyncio.wait "
        "asyncio.events asyncio.base_events anyio._backends uvloop.loop.Loop.create_task",
        "Start fewer tasks at a time: take them in batches of some hundred around {call}, with await asyncio.sleep(0) "
        "in between.",
        "creating a task takes microseconds, and creating 100,000 in a row holds the loop",
        _PY + "asyncio-task.html#asyncio.sleep", _COMPUTES, form="batches with asyncio.sleep(0) in between"),
    _on("awaits that never wait", "asyncio.queues asyncio.locks asyncio.streams asyncio.timeouts asyncio.Queue "
        "anyio.streams",
        "Give way with await asyncio.sleep(0) every N items: {call} does not suspend while items are ready.",
        "an await that has its result at once does not return to the loop",
        _PY + "asyncio-task.html#asyncio.sleep", _COMPUTES, form="asyncio.sleep(0) every N items"),
    _on("other functions of asyncio", "asyncio uvloop.loop uvloop",
        "Do less in one pass of the loop around {call}, and give way with await asyncio.sleep(0) in between.",
        "the loop's own functions run on its thread only", _PY + "asyncio-dev.html", _COMPUTES,
        form="asyncio.sleep(0) every N items"),
    # Files
    _on("files and folders", "os posix posixpath genericpath pathlib shutil tempfile glob mmap fileinput",
        "Run {call} through {thread}, or use aiofiles or anyio.Path.",
        "the disk or a network file system answers late", "https://anyio.readthedocs.io/en/stable/fileio.html",
        form="aiofiles or anyio.Path"),
    _on("copy or removal of a tree", "shutil.copytree shutil.rmtree shutil.make_archive shutil.copyfile shutil.copy "
        "shutil.copy2 shutil.move shutil.copyfileobj",
        "Run {call} through {thread}, as one call for the whole tree or file.",
        "it takes a system call or more per file", _PY + "asyncio-task.html#asyncio.to_thread"),
    _on("walk of a folder", "os.walk os.scandir os.listdir posix.scandir posix.listdir glob.glob glob.iglob",
        "Collect the names in one function run through {thread}, instead of {call} on the loop.",
        "each entry is a system call or more", _PY + "asyncio-task.html#asyncio.to_thread"),
    _on("sync to disk", "os.fsync os.fdatasync os.sync posix.fsync posix.fdatasync posix.sync",
        "Run {call} through {thread} and sync once for many writes.",
        "it waits until the device has written", _PY + "os.html#os.fsync"),
    _on("archive", "zipfile tarfile", "Run {call} through {offload}, as one function that does the whole archive.",
        "compression computes, reading and writing wait", _PY + "zipfile.html"),
    _on("open, read, write a file", "builtins.open io.open _io.open io _io",
        "Run {call} and the reads or writes that follow through {thread}, or use aiofiles.",
        "the disk or a network file system answers late", "https://github.com/Tinche/aiofiles", _WAITS,
        form="aiofiles", is_bound=True),
    # The terminal, logging, debugging
    _on("terminal input", "builtins.input sys.stdin getpass",
        "Read standard input through {thread} or loop.connect_read_pipe() instead of {call}.",
        "it waits for a line", _PY + "asyncio-eventloop.html#asyncio.loop.connect_read_pipe",
        form="loop.connect_read_pipe()", is_bound=True),
    _on("print", "builtins.print sys.stdout sys.stderr",
        "Log through a QueueHandler instead of {call}, which waits while the reader of the pipe or terminal is slow.",
        "a full pipe blocks the writer", _PY + "logging.handlers.html#queuehandler", _WAITS),
    _on("log record written", "logging",
        "Put a logging.handlers.QueueHandler on the logger and the slow handler behind a QueueListener, "
        "so that {call} does not write on the loop.",
        "the handler writes to a disk, a pipe or the network",
        _PY.replace("library/", "howto/") + "logging-cookbook.html#dealing-with-handlers-that-block", _WAITS_ONLY),
    _on("log record formatted", "logging structlog loguru",
        "Log less: pass a summary or a truncated text to {call}, and guard it with isEnabledFor().",
        "formatting a large object computes, and a QueueHandler formats on the loop as well",
        _PY.replace("library/", "howto/") + "logging.html#optimization", _RUNS_CODE),
    _on("loguru sink", "loguru", "Add the sink with enqueue=True so that {call} does not write on the loop.",
        "the sink writes in the calling thread",
        "https://loguru.readthedocs.io/en/stable/overview.html#asynchronous-thread-safe-multiprocess-safe",
        _WAITS_ONLY),
    _on("structlog output", "structlog",
        "Let structlog end in a standard logger with a QueueHandler so that {call} does not write on the loop.",
        "the logger writes in the calling thread", "https://www.structlog.org/en/stable/standard-library.html",
        _WAITS_ONLY),
    _on("breakpoint", "pdb bdb debugpy builtins.breakpoint",
        "Remove the breakpoint: {call} stops the loop until you continue.",
        "the debugger waits for a command", _PY + "pdb.html"),
    _on("wait for a signal", "signal.pause signal.sigwait signal.sigwaitinfo signal.sigtimedwait",
        "Replace {call} with loop.add_signal_handler().",
        "it waits for a signal", _PY + "asyncio-eventloop.html#asyncio.loop.add_signal_handler"),
    _on("system statistics", "psutil",
        "Pass interval=None to cpu_percent(), or run {call} through {thread}.",
        "with an interval it sleeps; process lists read a file per process",
        "https://psutil.readthedocs.io/en/latest/#psutil.cpu_percent"),
    # Code made or loaded at run time
    _on("import", "importlib _frozen_importlib _frozen_importlib_external builtins.__import__ _imp",
        "Import the module at start-up, at the top of a file, instead of inside the function that runs on the loop.",
        "the first import reads, compiles and runs the module", _PY + "importlib.html"),
    _on("compile, exec", "ast builtins.compile builtins.exec builtins.eval py_compile compileall",
        "Compile once at start-up and keep the code object, or run {call} through {offload}.",
        "compiling text takes time that grows with it", _PY + "functions.html#compile", _COMPUTES),
    _on("introspection", "inspect traceback linecache tokenize",
        "Call {call} less often, or cache its result.",
        "it reads and parses source files", _PY + "inspect.html"),
    _on("garbage collection", "gc.collect",
        "Remove gc.collect() from the request path, or call it when the loop is idle after gc.freeze().",
        "a full collection visits every object, in any thread, with the GIL", _PY + "gc.html#gc.freeze", _COLLECTS),
    # Data formats
    _on("JSON", "json _json simplejson requests.models.Response.json httpx._models.Response.json requests.Response.json "
        "httpx.Response.json",
        "Replace {call} with orjson or msgspec, or do it together with what needs the data through {offload}.",
        "the json module keeps the GIL for the whole document", "https://github.com/ijl/orjson", _COMPUTES),
    _on("JSON with a fast library", "orjson ujson rapidjson msgspec",
        "Split or page the document, or run {call} together with what needs the data through {offload}.",
        "it keeps the GIL for the whole document", "https://jcristharif.com/msgspec/perf-tips.html", _COMPUTES),
    _on("pickle", "pickle _pickle cloudpickle dill marshal",
        "Pickle less, or keep the object in the process that uses it: {call} keeps the GIL and a thread does not help.",
        "it visits every object with the GIL", _PY + "pickle.html#out-of-band-buffers", HOLDS_GIL | {Cause.UNKNOWN}),
    _on("deep copy", "copy.deepcopy copy._reconstruct",
        "Copy only the part that changes, or use immutable data, instead of copy.deepcopy() of the whole.",
        "it visits every object in Python", _PY + "copy.html", _COMPUTES),
    _on("YAML", "yaml ruamel.yaml",
        "Load YAML at start-up or with yaml.CSafeLoader, or run {call} through {offload}.",
        "the pure-Python parser is some ten times slower than the C one",
        "https://pyyaml.org/wiki/PyYAMLDocumentation", _COMPUTES),
    _on("XML, HTML", "xml lxml defusedxml bs4 html.parser html5lib xmltodict pyexpat",
        "Run {call} and what reads the tree through {offload}.", _KEEPS, "https://lxml.de/performance.html", _COMPUTES),
    _on("CSV, spreadsheets", "csv _csv openpyxl xlrd xlsxwriter",
        "Read and write the table in one function run through {offload}, not with {call} on the loop.",
        _KEEPS, _PY + "csv.html", _COMPUTES),
    _on("binary formats", "msgpack cbor2 bson google.protobuf avro fastavro tomllib",
        "Send smaller messages, or run {call} together with what needs the data through {offload}.",
        "encoding keeps the GIL", "https://protobuf.dev/best-practices/dos-donts/", _COMPUTES),
    _on("validation", "pydantic pydantic_core marshmallow attr attrs cattrs dataclasses.asdict dataclasses._asdict_inner",
        "Validate or convert fewer objects at a time, or run {call} through {offload}.",
        "each object is visited with the GIL", "https://docs.pydantic.dev/latest/concepts/performance/", _COMPUTES),
    _on("response encoding", "fastapi.encoders fastapi.routing.serialize_response starlette.responses.JSONResponse",
        "Return a Response with ready bytes (orjson) or a page of the data instead of leaving it to {call}.",
        "validation and encoding of the whole body run on the loop",
        "https://fastapi.tiangolo.com/advanced/response-directly/", _COMPUTES),
    _on("template rendering", "jinja2 mako django.template chameleon",
        "Cache rendered fragments and render less per page, or run {call} through {offload}.",
        "a template is Python code that builds one text", "https://jinja.palletsprojects.com/en/stable/api/", _COMPUTES),
    _on("template compilation", "jinja2.environment.Environment.from_string jinja2.environment.Environment.compile "
        "jinja2.environment.Template.__new__ jinja2.compiler jinja2.parser jinja2.lexer mako.template.Template.__init__ "
        "django.template.base.Template.__init__ django.template.base.Template.compile_nodelist",
        "Compile the template once at start-up (a loader with a cache) instead of calling {call} per request.",
        "compiling takes milliseconds, rendering a compiled one much less",
        "https://jinja.palletsprojects.com/en/stable/api/#jinja2.Environment", _COMPUTES),
    _on("document conversion", "markdown mistune docutils pygments reportlab weasyprint",
        "Cache the rendered document, or run {call} through {offload}.",
        _KEEPS, "https://python-markdown.github.io/reference/", _COMPUTES),
    # Cryptography and compression
    _on("hash of large data", "hashlib _hashlib _sha2 _md5 _blake2 hmac zlib.crc32 binascii",
        "Run {call} of large data through {offload}, in one call for all of it.",
        "hashlib gives up the GIL for more than 2 KiB, so a thread is enough", _PY + "hashlib.html", _COMPUTES),
    _on("password hash", "hashlib.pbkdf2_hmac hashlib.scrypt _hashlib.pbkdf2_hmac _hashlib.scrypt bcrypt _bcrypt argon2 "
        "passlib werkzeug.security django.contrib.auth.hashers pwdlib",
        "Run {call} through {offload}: password hashing is slow on purpose.",
        "it gives up the GIL, so a thread is enough", _PY + "hashlib.html#hashlib.pbkdf2_hmac", _COMPUTES),
    _on("keys and signatures", "cryptography Crypto nacl rsa ecdsa OpenSSL",
        "Create keys ahead of time, and run {call} through {offload}.",
        "the search for primes takes 0.1 s to seconds",
        "https://cryptography.io/en/latest/hazmat/primitives/asymmetric/rsa/", _COMPUTES),
    _on("tokens", "jwt jose authlib jwcrypto",
        "Cache verified tokens and loaded keys, prefer EdDSA or ES256 to RSA for signing, or run {call} "
        "through {offload}.",
        "loading a key and RSA signing take milliseconds", "https://pyjwt.readthedocs.io/en/stable/usage.html",
        _COMPUTES),
    _on("compression", "zlib gzip bz2 lzma _bz2 _lzma compression zstandard zstd pyzstd brotli lz4 snappy",
        "Run {call} through {offload}, or lower the compression level.",
        "it gives up the GIL, so a thread is enough", _PY + "zlib.html", _COMPUTES),
    # Images, numbers, models
    _on("images", "PIL cv2 imageio skimage wand pyvips",
        "Run {call}, from opening to saving the image, through {offload}.",
        "Pillow gives up the GIL in most operations", "https://pillow.readthedocs.io/en/stable/"),
    _on("numpy, scipy", "numpy scipy numba statsmodels networkx shapely",
        "Run {call} through {offload}, as one function from input to result.",
        "most array functions give up the GIL; one call is one trip",
        "https://numpy.org/doc/stable/reference/thread_safety.html"),
    _on("data frames", "pandas polars pyarrow dask",
        "Run {call} through {offload}, as one function from source to small result.",
        "frames are expensive to send: send the file name and the result",
        "https://pandas.pydata.org/docs/user_guide/scale.html"),
    _on("data frame row by row", "pandas.core.frame.DataFrame.apply pandas.core.frame.DataFrame.iterrows "
        "pandas.core.frame.DataFrame.itertuples pandas.core.series.Series.apply pandas.core.series.Series.map "
        "pandas.core.apply",
        "Replace {call} with an expression on whole columns, or run it through {offload}.",
        "a Python call per row is some hundred times slower than a column operation",
        "https://pandas.pydata.org/docs/user_guide/enhancingperf.html", _COMPUTES),
    _on("torch", "torch",
        "Run the model with {call} through {thread} under torch.inference_mode(), batch requests, and limit "
        "torch.set_num_threads().",
        "operators give up the GIL, so a thread is enough; large batches beat many small calls",
        "https://docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html"),
    _on("machine learning", "sklearn xgboost lightgbm tensorflow onnxruntime transformers spacy sentence_transformers",
        "Run {call} through {offload}, with the model loaded once in the worker and requests batched.",
        "inference computes; loading takes longer than predicting",
        "https://scikit-learn.org/stable/computing/computational_performance.html"),
    # Text and pure computing
    _on("regular expression", "re _sre regex",
        "Rewrite the pattern so that it cannot backtrack (possessive or atomic groups, no nested repeats), "
        "bound the input of {call}, or run it through {offload}.",
        "backtracking grows exponentially with the input, and keeps the GIL", _PY + "re.html", _COMPUTES),
    _on("regular expression compiled", "re.compile re._compile re._compiler re._parser regex._regex_core",
        "Compile the pattern once at import instead of calling {call} on the loop.",
        "the compiler is Python code, and the cache holds 512 patterns", _PY + "re.html#re.compile", _COMPUTES),
    _on("text distance", "difflib rapidfuzz Levenshtein thefuzz",
        "Bound the length of the inputs of {call}, or run it through {offload}.",
        "it grows with the square of the length", _PY + "difflib.html", _COMPUTES),
    _on("iterators and numbers of the standard library",
        "itertools functools.reduce heapq _heapq bisect statistics random fractions decimal",
        "Work on fewer items at a time, or run the loop around {call} through {offload}.",
        "it keeps the GIL for the whole row of items", _PY + "itertools.html", _COMPUTES),
    _on("sort", "builtins.sorted builtins.list.sort",
        "Sort in the database or keep the data sorted (bisect, heapq) instead of {call}, or run it through {offload}.",
        "sorting keeps the GIL", _PY + "bisect.html", _COMPUTES),
    _on("builtins over many items", "builtins.sum builtins.min builtins.max builtins.any builtins.all builtins.map "
        "builtins.filter builtins.list builtins.dict builtins.set builtins.tuple",
        "Split {call} over fewer items with await asyncio.sleep(0) in between, or run it through {offload}.",
        "one call handles all items with the GIL", _PY + "asyncio-task.html#asyncio.sleep", _COMPUTES,
        form="asyncio.sleep(0) between pieces of it"),
    _on("large numbers and texts", "builtins.pow builtins.int builtins.str builtins.repr math",
        "Bound the size of the numbers and objects given to {call}, or run it through {offload}.",
        "the time grows faster than the size",
        _PY + "stdtypes.html#integer-string-conversion-length-limitation", _COMPUTES),
    # Methods of an object of unknown type: only where name and cause together are conclusive
    _on("method: lock", ".acquire .__enter__",
        "Replace {call} of the thread lock with asyncio.Lock, or take it inside a function run through {thread}.",
        "it waits for another thread", _PY + "asyncio-sync.html#asyncio.Lock", _FOR_LOCK, form="asyncio.Lock", is_bound=True),
    _on("method: wait for a thread", ".wait",
        "Replace {call} with await on an asyncio.Event or asyncio.Condition.",
        "it waits for another thread", _PY + "asyncio-sync.html", _FOR_LOCK, form="an asyncio.Event"),
    _on("method: wait for a process", ".wait .communicate",
        "Start the process with asyncio.create_subprocess_exec() and await its communicate() instead of {call}.",
        "it waits until the command ends", _PY + "asyncio-subprocess.html", _IN_SYSCALL,
        form="asyncio.create_subprocess_exec()"),
    _on("method: output of a process", ".communicate",
        "Await communicate() of an asyncio subprocess instead of {call}.",
        "its reader threads wait for the command", _PY + "asyncio-subprocess.html", _FOR_LOCK,
        form="asyncio.create_subprocess_exec()"),
    _on("method: queue", ".get .put", "Replace {call} of the thread queue with await on asyncio.Queue.",
        "it waits for another thread", _PY + "asyncio-queue.html", _FOR_LOCK, form="asyncio.Queue"),
    _on("method: future", ".result .exception",
        "Replace {call} with await asyncio.wrap_future(), or start the work with await loop.run_in_executor().",
        "it waits until another thread is done", _PY + "asyncio-future.html#asyncio.wrap_future", _TO_BE_WOKEN,
        form="asyncio.wrap_future()"),
    _on("method: join", ".join",
        "Await the work (asyncio.to_thread, asyncio.Queue.join) instead of {call} of a thread, process or queue.",
        "it waits until the work is done", _PY + "asyncio-task.html#asyncio.to_thread", _TO_BE_WOKEN,
        form="asyncio.to_thread()"),
    _on("method: shutdown", ".shutdown", "Run {call} of the executor through {thread}, after the loop's work.",
        "it waits until the workers are done",
        _PY + "concurrent.futures.html#concurrent.futures.Executor.shutdown", _FOR_LOCK, is_bound=True),
    _on("method: query", ".execute .executemany .executescript .fetchone .fetchmany .fetchall .commit .rollback",
        "Replace {call} with the async driver of the database, or run it through {thread}.",
        _SYNC_SERVER, _PY + "asyncio-task.html#asyncio.to_thread", _ON_SQL, form="the async driver of the database", is_bound=True),
    _on("method: rows", ".fetchone .fetchmany .fetchall",
        "Fetch fewer rows and columns (LIMIT, pages): {call} spent the time on turning them into objects.",
        "turning rows into objects is the client's work", "https://use-the-index-luke.com/no-offset", HOLDS_GIL),
    _on("method: socket or pipe",
        ".recv .recv_into .recvfrom .recvmsg .accept .connect .send .sendall .sendto .sendfile .do_handshake",
        "Replace {call} with asyncio streams or loop.sock_* on a non-blocking socket, or run it through {thread}.",
        "it waits for the peer", _PY + "asyncio-stream.html", _IN_SYSCALL, form="asyncio streams", is_bound=True),
    _on("method: file",
        ".read .readinto .readline .readlines .write .writelines .flush .close .truncate",
        "Run {call} through {thread}, or use aiofiles for files and asyncio streams for pipes.",
        "the disk, or the other end of the pipe, answers late", "https://github.com/Tinche/aiofiles", _IN_SYSCALL,
        form="aiofiles or asyncio streams", is_bound=True),
    _on("method: select", ".select .poll", "Watch the descriptor with loop.add_reader() instead of {call}.",
        "a second selector waits inside the loop's pass",
        _PY + "asyncio-eventloop.html#asyncio.loop.add_reader", _IN_SYSCALL),
    _on("method: regular expression", ".match .search .fullmatch .finditer .findall .sub .subn",
        "Rewrite the pattern of {call} so that it cannot backtrack, bound its input, or run it through {offload}.",
        "backtracking grows exponentially with the input, and keeps the GIL", _PY + "re.html",
        frozenset({Cause.NATIVE_GIL})),
    _on("method: sort", ".sort",
        "Sort in the database or keep the data sorted instead of {call}, or run it through {offload}.",
        "sorting keeps the GIL", _PY + "bisect.html", HOLDS_GIL),
    _on("method: render", ".render", "Cache rendered fragments, or run {call} through {offload}.",
        "a template is Python code that builds one text", "https://jinja.palletsprojects.com/en/stable/api/",
        HOLDS_GIL),
)
# fmt: on
"""All remedies. A longer pattern wins over a shorter one; no pattern occurs twice for one cause."""

# The Worker on workerd, without Cloudflare: for tests and self-hosting.
#   workerd serve worker/workerd.capnp --socket-addr=http=127.0.0.1:8787 --directory-path=rooms=DIR
# It needs worker/dist/index.js (npm --prefix worker run build). Settings come from the environment.

using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "worker", worker = .worker),
    (name = "rooms", disk = (writable = true)),
    (name = "internet", network = (allow = ["public", "private"], tlsOptions = (trustBrowserCas = true))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8787", http = (), service = "worker")],
);

const worker :Workerd.Worker = (
  modules = [(name = "index.js", esModule = embed "dist/index.js")],
  compatibilityDate = "2026-11-01",
  compatibilityFlags = ["enable_request_signal"],
  durableObjectNamespaces = [
    (className = "NotificationRoom", uniqueKey = "NotificationRoom", enableSql = true),
    (className = "ConnectionRegistry", uniqueKey = "ConnectionRegistry", enableSql = true),
  ],
  durableObjectStorage = (localDisk = "rooms"),
  globalOutbound = "internet",
  bindings = [
    (name = "NOTIFICATION_ROOM", durableObjectNamespace = "NotificationRoom"),
    (name = "CONNECTION_REGISTRY", durableObjectNamespace = "ConnectionRegistry"),
    (name = "ALLOWED_ORIGINS", fromEnvironment = "ALLOWED_ORIGINS"),
    (name = "TOKEN_SECRETS", fromEnvironment = "TOKEN_SECRETS"),
    (name = "API_KEYS", fromEnvironment = "API_KEYS"),
    (name = "JWKS_URLS", fromEnvironment = "JWKS_URLS"),
    (name = "TOKEN_ISSUER", fromEnvironment = "TOKEN_ISSUER"),
    (name = "TOKEN_AUDIENCE", fromEnvironment = "TOKEN_AUDIENCE"),
    (name = "TOKEN_LEEWAY_S", fromEnvironment = "TOKEN_LEEWAY_S"),
    (name = "TOKEN_MAX_LIFETIME_S", fromEnvironment = "TOKEN_MAX_LIFETIME_S"),
    (name = "RETENTION_COUNT", fromEnvironment = "RETENTION_COUNT"),
    (name = "RETENTION_S", fromEnvironment = "RETENTION_S"),
    (name = "REQUEST_RETENTION_S", fromEnvironment = "REQUEST_RETENTION_S"),
    (name = "MAX_ROOM_BYTES", fromEnvironment = "MAX_ROOM_BYTES"),
    (name = "JOB_RETENTION_S", fromEnvironment = "JOB_RETENTION_S"),
    (name = "JOBS_PER_USER", fromEnvironment = "JOBS_PER_USER"),
    (name = "PIECE_INTERVAL_MS", fromEnvironment = "PIECE_INTERVAL_MS"),
    (name = "IDLE_TIMEOUT_S", fromEnvironment = "IDLE_TIMEOUT_S"),
    (name = "MAX_CONNECTIONS_PER_USER", fromEnvironment = "MAX_CONNECTIONS_PER_USER"),
    (name = "MAX_CONNECTIONS_PER_ROOM", fromEnvironment = "MAX_CONNECTIONS_PER_ROOM"),
    (name = "REQUESTS_PER_S", fromEnvironment = "REQUESTS_PER_S"),
    (name = "READ_BYTES_PER_S", fromEnvironment = "READ_BYTES_PER_S"),
    (name = "PUBLISHES_PER_S", fromEnvironment = "PUBLISHES_PER_S"),
    (name = "PUBLISH_BYTES_PER_S", fromEnvironment = "PUBLISH_BYTES_PER_S"),
    (name = "MESSAGES_PER_S", fromEnvironment = "MESSAGES_PER_S"),
  ],
);

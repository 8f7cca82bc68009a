"""The built-in HTTP server: HTTP/1.1, TLS, WebSocket and SSE on sockets."""

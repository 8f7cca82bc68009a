"""The room server's own front: what moves bytes between sockets and the rest of the server."""

// Bun's own server and its pub/sub (bun.com/docs, "WebSockets"): server.publish sends to a topic.
Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  development: false,
  async fetch(request, server) {
    const [, first, room, what] = new URL(request.url).pathname.split("/");
    if (first === "rooms" && what === "subscribe") {
      return server.upgrade(request, { data: { room } }) ? undefined : new Response(null, { status: 426 });
    }
    if (first === "broadcast") {
      for (const { rooms, ...notification } of (await request.json()).notifications) {
        const text = JSON.stringify(notification);
        for (const room of rooms) server.publish(room, text);
      }
      return Response.json({ success: true });
    }
    return new Response(null, { status: 404 });
  },
  websocket: {
    perMessageDeflate: false,
    open(socket) {
      socket.subscribe(socket.data.room);
    },
    message() {},
  },
});

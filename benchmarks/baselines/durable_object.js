// A Durable Object for each room, with the Hibernation WebSocket API (developers.cloudflare.com,
// "Use WebSockets").
import { DurableObject } from "cloudflare:workers";

export class Room extends DurableObject {
  async fetch() {
    const pair = new WebSocketPair();
    this.ctx.acceptWebSocket(pair[1]);
    return new Response(null, { status: 101, webSocket: pair[0] });
  }

  broadcast(text) {
    for (const socket of this.ctx.getWebSockets()) socket.send(text);
  }

  webSocketMessage() {}

  webSocketClose(socket, code) {
    socket.close(code);
  }
}

export default {
  async fetch(request, env) {
    const [, first, room] = new URL(request.url).pathname.split("/");
    const stub = (name) => env.ROOMS.get(env.ROOMS.idFromName(name));
    if (first === "rooms") return stub(room).fetch(request);
    const sent = [];
    for (const { rooms, ...notification } of (await request.json()).notifications) {
      const text = JSON.stringify(notification);
      for (const name of rooms) sent.push(stub(name).broadcast(text));
    }
    await Promise.all(sent);
    return Response.json({ success: true });
  },
};

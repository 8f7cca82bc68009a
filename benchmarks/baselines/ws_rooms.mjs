// ws on Node's http server (github.com/websockets/ws, "Multiple servers sharing a single HTTP/S
// server" and "Server broadcast"). The frame is encoded for each member, as `send` does.
import { createServer } from "node:http";
import { createRequire } from "node:module";

const { WebSocket, WebSocketServer } = createRequire(`${process.env.PEERS}/`)("ws");
const rooms = new Map();
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });

function send(room, text) {
  for (const socket of rooms.get(room) ?? []) {
    if (socket.readyState === WebSocket.OPEN) socket.send(text);
  }
}

const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks).toString();
    for (const { rooms: targets, ...notification } of JSON.parse(body).notifications) {
      const text = JSON.stringify(notification);
      for (const target of targets) send(target, text);
    }
    response.writeHead(200, { "Content-Type": "application/json" });
    response.end('{"success":true}');
  });
});

server.on("upgrade", (request, socket, head) => {
  sockets.handleUpgrade(request, socket, head, (client) => {
    const room = request.url.split("/")[2];
    if (!rooms.has(room)) rooms.set(room, new Set());
    rooms.get(room).add(client);
    client.on("error", () => {});
    client.on("close", () => rooms.get(room).delete(client));
  });
});

server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });

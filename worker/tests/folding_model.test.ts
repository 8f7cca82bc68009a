/** Any interleaving of writes, subscribers, sleep and slow clients gives everyone the text of a plain model. */

import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { afterEach, expect, test, vi } from "vitest";

import { Connection } from "../src/rooms/connection";
import { lengthOf, sliceOf } from "../src/protocol/codepoints";
import { freshUser, history, KEY, publish, request, roomStub, Subscriber, token, type Json } from "./client";

const PIECES = ["a", "é", "😀", "", "\u2028", "two words ", "x".repeat(700), "\u{1F469}\u200D\u{1F4BB}"];

afterEach(() => {
  vi.restoreAllMocks();
});

/** Numbers that are the same in each run (mulberry32). */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

interface Key {
  mode: "append" | "replace";
  attempt: number;
  isClosed: boolean;
  text: string;
  /** The number of the next piece. */
  index: number;
}

/** What PROTOCOL.md says that the log has, after writes in this order. */
class Model {
  /** The folded notifications by key, the latest last, as history has them. */
  log: { key: string; text: string }[] = [];
  readonly keys = new Map<string, Key>();

  /** Apply a write. Return the code of its conflict, or whether it is a duplicate. */
  write(fold: Json, text: string): string | boolean {
    let key = this.keys.get(fold["key"]);
    if (key !== undefined && fold["attempt"] < key.attempt) return "stale_attempt";
    const isOpen = key !== undefined && !key.isClosed;
    if (isOpen && key!.mode !== fold["mode"]) return "fold_mode";
    const continues = isOpen && key!.attempt === fold["attempt"];
    const length = continues ? lengthOf(key!.text) : 0;
    if (fold["offset"] !== undefined && fold["offset"] !== length) {
      const whole = key !== undefined && key.attempt === fold["attempt"] && key.mode === "append" ? key.text : undefined;
      const end = fold["offset"] + lengthOf(text);
      const isThere = whole !== undefined && end <= lengthOf(whole) && sliceOf(whole, fold["offset"], end) === text;
      return isThere ? true : "offset_mismatch";
    }
    const last = this.log.findLastIndex((entry) => entry.key === fold["key"]);
    if (isOpen) this.log.splice(last, 1);
    if (!continues) key = { mode: fold["mode"], attempt: fold["attempt"], isClosed: false, text: "", index: 0 };
    key!.text = fold["mode"] === "append" ? key!.text + text : text;
    key!.index++;
    key!.isClosed = fold["final"] === true;
    this.keys.set(fold["key"], key!);
    this.log.push({ key: fold["key"], text: key!.text });
    return false;
  }
}

/** A client of version 1 that applies pieces, and checks that none is missing. */
class Client {
  readonly texts = new Map<string, string>();
  readonly #indexes = new Map<string, number>();
  last = "";

  private constructor(readonly subscriber: Subscriber) {}

  static async open(room: string, credential: string, after: string): Promise<Client> {
    return new Client(await Subscriber.open(room, credential, `?after=${after}`));
  }

  /** Read until a notification. */
  async until(id: string): Promise<void> {
    while (this.last !== id) {
      const message = await this.subscriber.json();
      if (message["type"].startsWith("synap.")) continue;
      this.last = message["id"];
      if (message["fold"] !== undefined) this.#apply(message);
    }
  }

  #apply({ data, fold: { key, mode, offset } }: Json): void {
    if (mode === "replace") return void this.texts.set(key, data["delta"]);
    const text = this.texts.get(key) ?? "";
    expect(offset).toBeLessThanOrEqual(lengthOf(text));
    this.texts.set(key, sliceOf(text, 0, offset) + data["delta"]);
    const next = data["index"] === 0 ? 0 : this.#indexes.get(key)! + 1;
    expect(data["index"]).toBe(next);
    this.#indexes.set(key, next);
  }
}

for (const seed of [1, 2, 3, 4]) {
  test(`texts of random writes, ${seed}`, { timeout: 60_000 }, async () => {
    const random = randomOf(seed);
    const { user, room } = freshUser();
    const credential = await token({ sub: user });
    const model = new Model();
    const clients: Client[] = [];
    let id = 0;
    let cursor = "earliest";
    for (let step = 0; step < 40; step++) {
      const [writes, expected]: [Json[], (string | boolean)[]] = [[], []];
      for (let n = random(8); n >= 0; n--) {
        const name = `k${random(3)}`;
        const key = model.keys.get(name);
        const mode = random(12) === 0 ? "replace" : (key?.mode ?? "append");
        const attempt = Math.max(0, (key?.attempt ?? 0) + [0, 0, 0, 0, 0, 0, 1, -1][random(8)]!);
        const text = PIECES[random(PIECES.length)]!;
        const continues = key !== undefined && !key.isClosed && key.attempt === attempt;
        const length = continues ? lengthOf(key.text) : 0;
        const offset = [undefined, length, length, length, Math.max(0, length - 1), length + 1][random(6)];
        const final = random(12) === 0;
        const fold = { key: name, mode, attempt, final, ...(mode === "append" && offset !== undefined ? { offset } : {}) };
        const index = continues ? key.index : 0;
        writes.push({ rooms: [room], type: "note.delta", data: { delta: text, index }, id: `n${id++}`, fold });
        expected.push(model.write(fold, text));
      }
      writes.push({ rooms: [room], type: "note.created", data: {}, id: `n${id++}` });
      const response = await request("/broadcast", KEY, {
        method: "POST",
        body: JSON.stringify({ notifications: writes }),
        headers: { "Content-Type": "application/json" },
      });
      const { results } = (await response.json()) as Json;
      const found = results.map((result: Json) => (result["success"] ? result["rooms"][room].duplicate : result["code"]));
      expect(found).toEqual([...expected, false]);
      if (random(3) === 0) cursor = results.at(-1)["rooms"][room].cursor;
      if (random(4) === 0) await evictDurableObject(roomStub(room));
      if (random(4) === 0 && clients.length < 8) clients.push(await Client.open(room, credential, "earliest"));
      if (random(6) === 0) clients.splice(0, 1).forEach(({ subscriber }) => subscriber.socket.close(1000));
      const isBehind = random(3) === 0;
      await runInDurableObject(roomStub(room), () => {
        vi.restoreAllMocks();
        if (isBehind) vi.spyOn(Connection.prototype, "isBehind", "get").mockReturnValue(true);
      });
    }
    clients.push(await Client.open(room, credential, cursor), await Client.open(room, credential, "earliest"));
    await publish(room, "end");
    for (const client of clients) await client.until("end");
    const { notifications } = await history(room, credential, "?limit=1000");
    const folded = notifications.filter(({ fold }: Json) => fold !== undefined);
    expect(folded.map(({ fold, data }: Json) => ({ key: fold.key, text: data.delta }))).toEqual(model.log);
    for (const client of clients) {
      for (const [name, text] of client.texts) expect(text).toBe(model.keys.get(name)!.text);
    }
    expect(clients.at(-1)!.texts.size).toBe(model.keys.size);
  });
}

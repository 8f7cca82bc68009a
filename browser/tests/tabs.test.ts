/** One connection for several tabs, over this process's own channels and locks. */
import { afterEach, describe, expect, test, vi } from "vitest";
import type { State, SubscribeOptions, Subscription } from "../src/socket.js";
import { subscribeShared } from "../src/tabs.js";
import { pass, ScriptedSocket, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const open: Subscription[] = [];
let number = 0;
let room = "";
afterEach(async () => {
  for (const subscription of open.splice(0)) subscription.close();
  await settle();
});

interface Tab extends Subscription {
  heard: string[];
  states: State[];
  gaps: string[];
}

/** A tab of the present room; each test has its own. */
function tab(options: SubscribeOptions = {}): Tab {
  const told = { heard: [] as string[], states: [] as State[], gaps: [] as string[] };
  const subscription = subscribeShared(room, {
    url: "https://rooms.example",
    ...options,
    onNotification: (each) => {
      told.heard.push(each.cursor ?? "");
      options.onNotification?.(each);
    },
    onState: (state) => {
      told.states.push(state);
      options.onState?.(state);
    },
    onGap: (gap) => void told.gaps.push(gap),
  });
  open.push(subscription);
  return Object.defineProperties(told, Object.getOwnPropertyDescriptors(subscription)) as unknown as Tab;
}

/** Messages between tabs take turns of the event loop; there is no event for the last of them. */
async function until(condition: () => boolean): Promise<void> {
  for (let round = 0; round < 200 && !condition(); round++) await settle();
  expect(condition()).toBe(true);
}

/** The first tab, which leads and is connected; in a room that no other test has. */
async function leader(options: SubscribeOptions = {}, kind = "user") {
  room = `${kind}_${++number}`;
  const first = tab(options);
  await until(() => ScriptedSocket.all.length === 1);
  const socket = ScriptedSocket.last.accept();
  return { first, socket };
}

/** One more, which has been answered. */
async function follower(options: SubscribeOptions = {}) {
  const other = tab(options);
  await until(() => other.states.length > 0);
  return other;
}

/** The socket that was dialled after so many. */
async function dialled(count: number): Promise<ScriptedSocket> {
  await until(() => ScriptedSocket.all.length === count);
  return ScriptedSocket.last;
}

describe("the tab that leads", () => {
  test("has the only connection, and all hear the same", async () => {
    const { first, socket } = await leader();
    const [second, third] = [await follower(), await follower()];
    socket.notify("c1", "c2");
    await until(() => third.heard.length === 2);
    expect([first.heard, second.heard, third.heard]).toEqual(Array(3).fill(["c1", "c2"]));
    expect([first, second, third].map(({ state }) => state.status)).toEqual(["open", "open", "open"]);
    expect([second.cursor, third.cursor]).toEqual(["c2", "c2"]);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("tells how it stands, also why not", async () => {
    const { socket } = await leader();
    const second = await follower();
    socket.end(4503, "not this room");
    await until(() => second.state.status === "closed");
    expect(second.state.error).toMatchObject({ message: "not this room", code: 4503, retriable: false });
    const third = await follower();
    expect(third.state.error?.message).toBe("not this room");
  });

  test("tells of a gap", async () => {
    const { first, socket } = await leader({ after: "c0" });
    room = first.room;
    const second = await follower({ after: "latest" });
    socket.subscribed("c9", false);
    await until(() => second.gaps.length === 1);
    expect([first.gaps, second.gaps]).toEqual([[room], [room]]);
  });

  test("says what others have to say, and dials when they ask for it", async () => {
    const { socket } = await leader();
    const second = await follower();
    second.send("hello");
    await until(() => socket.sent.includes("hello"));
    socket.end(4503);
    await until(() => second.state.status === "closed");
    second.reconnect();
    (await dialled(2)).accept();
    await until(() => second.state.status === "open");
  });

  test("has another connection for another room, server or device", async () => {
    await leader();
    tab({ url: "https://other.example" });
    await dialled(2);
    tab({ device: "laptop" });
    await dialled(3);
    room = "user_other";
    tab();
    await dialled(4);
  });
});

describe("a tab that comes later", () => {
  test("hears what comes from then on", async () => {
    const { socket } = await leader();
    socket.notify("c1");
    const second = await follower();
    socket.notify("c2");
    await until(() => second.heard.length > 0);
    expect(second.heard).toEqual(["c2"]);
  });

  test("hears also what comes before it is answered", async () => {
    const { socket } = await leader();
    const second = tab();
    socket.notify("c1");
    await until(() => second.heard.length > 0);
    socket.notify("c2");
    await until(() => second.heard.length > 1);
    expect(second.heard).toEqual(["c1", "c2"]);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("hears all of a request's room, in order and once", async () => {
    const { socket } = await leader({}, "request");
    socket.notify("c1", "c2");
    const second = tab();
    socket.notify("c3");
    await until(() => second.heard.length === 3);
    socket.notify("c4");
    await until(() => second.heard.length === 4);
    expect(second.heard).toEqual(["c1", "c2", "c3", "c4"]);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("hears what is after its cursor", async () => {
    const { socket } = await leader();
    socket.notify("c1", "c2", "c3");
    expect((await follower({ after: "c2" })).heard).toEqual(["c3"]);
  });

  test("listens itself when the one that leads no longer has all", async () => {
    const { socket } = await leader({}, "request");
    for (let count = 1; count <= 501; count++) socket.notify(`c${count}`);
    const second = tab();
    (await dialled(2)).accept().notify("c1");
    expect(second.heard).toEqual(["c1"]);
    socket.notify("c502");
    await settle();
    expect(second.heard).toEqual(["c1"]); // its own connection brings it
  });

  test("listens itself from a cursor that the one that leads does not know", async () => {
    await leader();
    tab({ after: "c7" });
    (await dialled(2)).accept();
    expect(ScriptedSocket.last.after).toBe("c7");
    await pass(5000);
    expect(ScriptedSocket.all).toHaveLength(2);
  });

  test("listens itself when no answer comes, and leads when it can", async () => {
    room = `user_${++number}`;
    const name = `synap:https://rooms.example:${room}:`;
    let release = () => {};
    void navigator.locks.request(name, () => new Promise<void>((resolve) => (release = resolve)));
    const second = tab();
    await pass(1999);
    expect(ScriptedSocket.all).toHaveLength(0);
    await pass(1);
    (await dialled(1)).accept().notify("c1");
    expect(second.heard).toEqual(["c1"]);
    release();
    await settle();
    const third = await follower();
    ScriptedSocket.last.notify("c2");
    await until(() => third.heard.length === 1);
    expect(ScriptedSocket.all).toHaveLength(1);
  });
});

describe("when the tab that leads goes", () => {
  test("another resumes where it has come: nothing is lost and nothing doubled", async () => {
    const { first, socket } = await leader();
    const [second, third] = [await follower(), await follower()];
    socket.notify("c1", "c2");
    await until(() => third.heard.length === 2);
    first.close();
    const next = await dialled(2);
    expect(next.after).toBe("c2");
    expect(socket.isClosed).toBe(true);
    next.accept().notify("c2", "c3").subscribed("c3");
    await until(() => third.heard.length === 3);
    expect([second.heard, third.heard]).toEqual(Array(2).fill(["c1", "c2", "c3"]));
    expect(first.heard).toEqual(["c1", "c2"]);
    expect(ScriptedSocket.all).toHaveLength(2);
  });

  test("before anything came, the next one begins where it was, and not at the latest", async () => {
    const { first, socket } = await leader({ after: "latest" });
    socket.subscribed("c5");
    await follower({ after: "latest" });
    first.close();
    expect((await dialled(2)).after).toBe("c5");
  });

  test("one after the other, down to the last", async () => {
    const { first, socket } = await leader();
    const tabs = [first, await follower(), await follower(), await follower()];
    socket.notify("c1");
    await until(() => tabs.every(({ heard }) => heard.length === 1));
    for (const [place, each] of tabs.slice(0, -1).entries()) {
      each.close();
      const next = (await dialled(place + 2)).accept().notify(`c${place + 2}`);
      expect(next.after).toBe(`c${place + 1}`);
      await until(() => tabs.slice(place + 1).every(({ heard }) => heard.length === place + 2));
    }
    expect(tabs.at(-1)?.heard).toEqual(["c1", "c2", "c3", "c4"]);
  });

  test("and the next one stood alone, the others get from it what they have not heard", async () => {
    const { first, socket } = await leader();
    const alone = tab({ after: "c0" }); // which the first one cannot answer
    const own = (await dialled(2)).accept();
    const third = await follower();
    socket.notify("c1");
    await until(() => third.heard.length === 1);
    own.notify("c1", "c2"); // the first one's connection is dead, and nobody knows
    first.close();
    await until(() => third.heard.length === 2);
    own.notify("c3");
    await until(() => third.heard.length === 3);
    expect([third.heard, alone.heard]).toEqual(Array(2).fill(["c1", "c2", "c3"]));
    expect(ScriptedSocket.all).toHaveLength(2);
  });
});

describe("its end", () => {
  test("calls nothing any more, lets the lock go, and may come at any moment", async () => {
    const { first } = await leader();
    const second = tab();
    second.close(); // before it was answered
    second.send("nothing");
    second.reconnect();
    await settle();
    const before = first.states.length;
    first.close();
    await settle();
    expect(first.states).toHaveLength(before);
    expect([first.state.status, second.state.status]).toEqual(["closed", "closed"]);
    const third = tab();
    (await dialled(2)).accept();
    await until(() => third.state.status === "open");
  });

  test("just when it was to lead gives the lock back", async () => {
    let grant = (_: object): unknown => "not asked for";
    const request = (_: string, __: object, granted: typeof grant) => {
      grant = granted;
      return new Promise(() => {});
    };
    vi.stubGlobal("navigator", { locks: { request } });
    tab().close();
    expect(grant({})).toBe(undefined); // a promise would hold it
  });

  test("at once, as React's strict mode does it: the second one leads", async () => {
    room = `user_${++number}`;
    tab().close();
    const second = tab();
    (await dialled(1)).accept();
    expect(second.state.status).toBe("open");
    await pass(5000);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test("from inside a callback ends what was on its way", async () => {
    const { socket } = await leader({}, "request");
    socket.notify("c1", "c2", "c3");
    const second = tab({ onNotification: () => second.close() });
    await until(() => second.heard.length > 0);
    await settle();
    expect(second.heard).toEqual(["c1"]);
  });
});

test("a callback that throws loses nothing of what follows", async () => {
  const { socket } = await leader({}, "request");
  socket.notify("c1", "c2");
  const second = tab({
    onNotification: () => {
      throw new Error("of the application");
    },
  });
  await until(() => second.heard.length === 2);
  expect(() => vi.runOnlyPendingTimers()).toThrow("of the application");
});

test.each(["BroadcastChannel", "navigator"])("without %s each tab has its own connection", async (name) => {
  vi.stubGlobal(name, undefined);
  room = `user_${++number}`;
  tab();
  tab();
  await dialled(2);
});

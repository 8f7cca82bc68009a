/** The hooks that show jobs: snapshots, lists, the provider, and what a component renders. */
import { act, cleanup, render, renderHook } from "@testing-library/react";
import { StrictMode, type ReactNode } from "react";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { RealtimeProvider, useJob, useJobs, useSynapRealtime, type JobsOptions } from "../src/react.js";
import { notification, pass, ScriptedSocket, ScriptedStream, settle, useScriptedWorld } from "./world.js";

useScriptedWorld();

const acting = (what: () => unknown) => act(async () => void (await what()));
let url: string;
let number = 0;
beforeEach(() => {
  ScriptedSocket.haveRooms = true;
  url = `https://jobs${number++}.example`;
});
afterEach(cleanup);

const accept = async () => {
  await acting(settle);
  await acting(() => ScriptedSocket.last.accept("synap.v2"));
  return ScriptedSocket.last;
};
const live = (socket: ScriptedSocket, room: string, cursor: string) =>
  acting(() => socket.control("subscribed", { room, cursor, replayed: 0, recovered: true }));
const subscribed = (socket: ScriptedSocket) =>
  (socket.actions as { action: string; room: string; after?: string }[])
    .filter(({ action }) => action === "subscribe")
    .map(({ room, after }) => [room, after]);

const record = (id: string, rest: object = {}) => ({
  type: "note.creation", status: "running", runId: `run-${id}`, requestId: id, attempt: 1, startedAt: `2030-01-01T00:00:0${id}.000Z`, ...rest,
});
/** A lifecycle notification. */
const event = (name: string, id: string, cursor: string, data: object = {}, rest: object = {}) =>
  notification(cursor, {
    id: `${id}:${name}:${cursor}`, type: `note.creation.${name}`, requestId: id, data: { runId: `run-${id}`, attempt: 1, ...data },
    job: { event: name, name: "note.creation", runId: `run-${id}` }, timestamp: `2030-01-01T00:01:0${id}.000Z`, ...rest,
  });

describe("useJob", () => {
  test("shows the snapshot, and continues from its cursor", async () => {
    const job = record("1", { status: "running", progress: 0.4, label: "Writing", text: "Hé😀" });
    ScriptedStream.answers["/jobs/1"] = () => ({ job, cursor: "a-7" });
    const hook = renderHook(() => useJob("1", { url, token: "t" }));
    expect(hook.result.current).toMatchObject({ status: "idle", connection: "connecting" });
    const socket = await accept();
    expect(hook.result.current).toMatchObject({ status: "pending", progress: 0.4, label: "Writing", text: "Hé😀", isTextComplete: true });
    expect(subscribed(socket)).toEqual([["request_1", "a-7"]]);
    const piece = notification("a-8", { room: "request_1", type: "note.creation.delta", data: { runId: "run-1", attempt: 1, delta: "!", index: 9 }, fold: { offset: 3 } });
    await acting(() => socket.json(piece));
    expect(hook.result.current).toMatchObject({ text: "Hé😀!", isTextComplete: true });
  });

  test.each([
    ["completed", { result: { response: "Hello" }, text: "Hello" }, { status: "success", result: { response: "Hello" }, text: "Hello" }],
    ["completed", { result: { response: "Hello" } }, { status: "success", text: "Hello" }],
    ["failed", { error: "No paper." }, { status: "error", error: "No paper." }],
    ["cancelled", { error: "Cancelled." }, { status: "error", error: "Cancelled." }],
  ])("shows how a job has ended (%s) without a connection", async (status, rest, shown) => {
    ScriptedStream.answers["/jobs/1"] = () => ({ job: record("1", { status, ...rest }), cursor: "a-7" });
    const hook = renderHook(() => useJob("1", { url }));
    await acting(() => pass(60_000));
    expect(hook.result.current).toMatchObject({ ...shown, connection: "closed", isTextComplete: true });
    expect(ScriptedSocket.all).toEqual([]);
  });

  test.each([
    ["is not known", undefined], ["has no text, which the log may have", () => ({ job: record("1"), cursor: "a-7" })],
  ])("reads the room from its beginning, as the server does by default, if the job %s", async (_, answer) => {
    if (answer) ScriptedStream.answers["/jobs/1"] = answer;
    renderHook(() => useJob("1", { url }));
    expect(subscribed(await accept())).toEqual([["request_1", "earliest"]]);
  });

  test("does not wait long for the snapshot", async () => {
    ScriptedStream.answers["/jobs/1"] = () => new Promise(() => {});
    renderHook(() => useJob("1", { url }));
    await acting(() => pass(5000));
    expect(subscribed(await accept())).toEqual([["request_1", "earliest"]]);
  });

  test("reads the snapshot again after a gap, and loses nothing that is received meanwhile", async () => {
    const piece = (cursor: string, offset: number, delta: string) =>
      notification(cursor, { room: "request_1", type: "note.creation.delta", data: { runId: "run-1", attempt: 1, delta, index: offset }, fold: { offset } });
    let answer: unknown = { job: record("1", { text: "He" }), cursor: "a-7" };
    ScriptedStream.answers["/jobs/1"] = () => answer;
    const hook = renderHook(() => useJob("1", { url }));
    const socket = await accept();
    await live(socket, "request_1", "a-7");
    let bring = (_: unknown) => {};
    answer = new Promise((resolve) => (bring = resolve));
    await acting(() => socket.control("subscribed", { room: "request_1", cursor: "b-1", replayed: 0, recovered: false }));
    await acting(() => socket.json(piece("b-3", 5, ", wor"))); // the snapshot is of b-2
    expect(hook.result.current).toMatchObject({ text: "He", isTextComplete: false });
    await acting(() => bring({ job: record("1", { text: "Hello" }), cursor: "b-2" }));
    await acting(settle);
    expect(hook.result.current).toMatchObject({ text: "Hello, wor", isTextComplete: true });
    await acting(() => socket.json(piece("b-4", 10, "ld")));
    expect(hook.result.current).toMatchObject({ text: "Hello, world", isTextComplete: true });
    expect(subscribed(socket)).toEqual([["request_1", "a-7"]]); // it has received all that follows the snapshot
  });

  test("what is received during a request is shown also if the snapshot does not come", async () => {
    ScriptedStream.answers["/jobs/1"] = () => ({ job: record("1", { text: "He" }), cursor: "a-7" });
    const hook = renderHook(() => useJob("1", { url }));
    const socket = await accept();
    await live(socket, "request_1", "a-7");
    ScriptedStream.answers["/jobs/1"] = () => new Promise(() => {});
    await acting(() => socket.control("subscribed", { room: "request_1", cursor: "b-1", replayed: 0, recovered: false }));
    await acting(() => socket.json(event("failed", "1", "b-2", { error: "No paper." }, { room: "request_1" })));
    await acting(() => pass(5000));
    expect(hook.result.current).toMatchObject({ status: "error", error: "No paper.", connection: "closed" });
  });

  test("tries to read the snapshot again while nothing else shows the job", async () => {
    let isLimited = true;
    const { fetch } = globalThis;
    vi.stubGlobal("fetch", (asked: string, init: RequestInit) =>
      isLimited && asked.includes("/jobs/") ? Promise.resolve(new Response('{"details":"too many"}', { status: 429 })) : fetch(asked, init),
    );
    ScriptedStream.answers["/jobs/1"] = () => ({ job: record("1", { status: "failed", error: "No paper." }), cursor: "a-7" });
    const hook = renderHook(() => useJob("1", { url }));
    const socket = await accept();
    await live(socket, "request_1", "a-7");
    expect(hook.result.current).toMatchObject({ status: "idle", connection: "open" });
    isLimited = false;
    await acting(() => pass(5000));
    expect(hook.result.current).toMatchObject({ status: "error", error: "No paper.", connection: "closed" });
  });

  test("makes no request while it is not enabled", async () => {
    const hook = renderHook(({ enabled }) => useJob("1", { url, enabled }), { initialProps: { enabled: false } });
    await acting(() => pass(1000));
    expect([ScriptedStream.asked, ScriptedSocket.all, hook.result.current.connection]).toEqual([[], [], "closed"]);
    hook.rerender({ enabled: true });
    await accept();
    hook.rerender({ enabled: false });
    await acting(() => pass(1000));
    expect([ScriptedSocket.last.isClosed, hook.result.current.connection]).toEqual([true, "closed"]);
  });

  test("fifty of them are one connection, also in StrictMode, and call token() for it once", async () => {
    const token = vi.fn(async () => "t");
    const names = Array.from({ length: 50 }, (_, each) => `${each}`);
    function Job({ id }: { id: string }) {
      return <p>{useJob(id).status}</p>;
    }
    const { unmount, container } = render(
      <StrictMode>
        <RealtimeProvider url={url} token={() => token()}>{names.map((id) => <Job key={id} id={id} />)}</RealtimeProvider>
      </StrictMode>,
    );
    const socket = await accept();
    expect(subscribed(socket)).toHaveLength(50);
    await acting(() => names.forEach((id) => socket.json(event("started", id, "a-1", {}, { room: `request_${id}` }))));
    expect(container.textContent).toBe("pending".repeat(50));
    expect(ScriptedSocket.all).toHaveLength(1);
    expect(token.mock.calls.length).toBeLessThan(5); // for the snapshots, and for the connection
    unmount();
    await acting(() => pass(1000));
    expect(socket.isClosed).toBe(true);
  });

  test("renders only what `select` returns, and at most once in `throttleMs`", async () => {
    let renders = 0;
    const hook = renderHook(() => {
      renders++;
      return useJob("1", { url, select: ({ status, progress = 0 }) => ({ status, isHalf: progress >= 0.5 }) });
    });
    const socket = await accept();
    await acting(() => socket.json(event("started", "1", "a-1", {}, { room: "request_1" })));
    const before = renders;
    for (let step = 2; step < 9; step++) await acting(() => socket.json(event("progress", "1", `a-${step}`, { progress: step / 10 }, { room: "request_1" })));
    expect(hook.result.current).toEqual({ status: "pending", isHalf: true });
    expect(renders - before).toBe(1);

    const shown: (number | undefined)[] = [];
    renderHook(() => shown.push(useJob("2", { url, throttleMs: 100, select: ({ progress }) => progress }) as number));
    await acting(settle);
    await acting(() => pass(1000));
    shown.length = 0;
    for (let step = 1; step <= 20; step++) {
      await acting(() => socket.json(event("progress", "2", `a-${step}`, { progress: step / 20 }, { room: "request_2" })));
      await acting(() => pass(20));
    }
    await acting(() => pass(100));
    expect(shown.at(-1)).toBe(1);
    expect(shown.length).toBeLessThan(7);
  });
});

describe("RealtimeProvider", () => {
  const within = (token: string) => ({ children }: { children: ReactNode }) => <RealtimeProvider url={url} token={token}>{children}</RealtimeProvider>;

  test("gives the server and the token to all hooks", async () => {
    renderHook(() => [useSynapRealtime({ userId: "1" }), useJob("1"), useJobs({ userId: "1" })], { wrapper: within("t") });
    await acting(() => pass(0));
    const socket = await accept();
    expect([socket.url, socket.token]).toEqual([`${url.replace("http", "ws")}/subscribe`, "t"]);
    expect(subscribed(socket).map(([room]) => room).sort()).toEqual(["request_1", "user_1"]);
    expect(ScriptedStream.asked.map((each) => each.replace(url, ""))).toEqual(["/jobs/1", "/users/1/jobs?limit=50"]);
    expect(ScriptedSocket.all).toHaveLength(1);
  });

  test.each([undefined, null])("gives them also to a hook whose url is %s", async (none) => {
    renderHook(() => useSynapRealtime({ userId: "1", url: none as undefined }), { wrapper: within("t") });
    await acting(settle);
    expect([ScriptedSocket.last.url, ScriptedSocket.last.token]).toEqual([`${url.replace("http", "ws")}/subscribe`, "t"]);
  });

  test("gives no token to another server", async () => {
    renderHook(() => useSynapRealtime({ userId: "1", url: "https://other.example" }), { wrapper: within("secret") });
    await acting(settle);
    expect([ScriptedSocket.last.url, ScriptedSocket.last.token]).toEqual(["wss://other.example/subscribe", undefined]);
  });
});

describe("useJobs", () => {
  const list = async (options: Partial<JobsOptions> = {}, jobs: object[] = [record("3"), record("2")], next: string | null = null) => {
    const answer = { jobs, cursor: "a-5", next };
    ScriptedStream.answers["/users/1/jobs"] = () => answer;
    const hook = renderHook(() => useJobs({ userId: "1", url, ...options } as JobsOptions));
    await acting(() => pass(0));
    const socket = await accept();
    await live(socket, "user_1", "a-5");
    return {
      socket, answer, now: () => hook.result.current, ids: () => hook.result.current.jobs.map(({ requestId }) => requestId), hook,
      send: (...args: Parameters<typeof event>) => acting(() => socket.json({ ...event(...args), room: "user_1" })),
    };
  };

  test("reads the list, and follows it", async () => {
    const { now, ids, send, socket, answer } = await list();
    expect(now()).toMatchObject({ isLoaded: true, hasMore: false, connection: "open" });
    expect(ids()).toEqual(["3", "2"]);
    expect(subscribed(socket)).toEqual([["user_1", "a-5"]]);
    const [third, second] = now().jobs;
    await send("progress", "2", "a-6", { progress: 0.5, label: "Half" });
    expect(now().jobs[1]).toMatchObject({ progress: 0.5, label: "Half", status: "running" });
    expect(now().jobs[0]).toBe(third);
    expect(now().jobs[1]).not.toBe(second);
    await send("completed", "3", "a-7", { title: "Milk" });
    expect(now().jobs[0]).toMatchObject({ status: "completed", progress: 1, result: { title: "Milk" }, endedAt: "2030-01-01T00:01:03.000Z" });
    expect(ScriptedStream.asked).toHaveLength(1);
    answer.jobs = [record("4"), ...now().jobs];
    answer.cursor = "a-8";
    await send("started", "4", "a-8");
    await acting(settle);
    expect(ids()).toEqual(["4", "3", "2"]);
    expect([ScriptedStream.asked.length, subscribed(socket).length]).toEqual([2, 1]);
  });

  test("removes what does not match any more, and asks for what does not fit", async () => {
    const { ids, send, answer } = await list({ status: ["running", "retrying"], type: "note.creation", limit: 2 }, [record("3"), record("2")], "more");
    expect(ScriptedStream.asked[0]).toContain("?limit=2&status=running%2Cretrying&type=note.creation");
    answer.jobs = [record("2"), record("1")];
    answer.cursor = "a-6";
    await send("failed", "3", "a-6", { error: "No." });
    await acting(settle);
    expect(ids()).toEqual(["2", "1"]);
    await send("progress", "0", "a-7"); // an older one
    await acting(() => pass(0));
    expect([ScriptedStream.asked.length, ids()]).toEqual([3, ["2", "1"]]);
    await send("progress", "0", "a-8");
    await acting(() => pass(1000));
    expect(ScriptedStream.asked).toHaveLength(3); // it is not in the list
  });

  test("what is received during a request is applied once", async () => {
    let answer = (_: object) => {};
    const { send, now, ids } = await list();
    ScriptedStream.answers["/users/1/jobs"] = () => new Promise((resolve) => (answer = resolve));
    await acting(() => now().reload());
    await send("progress", "2", "a-6", { progress: 0.2 });
    await send("progress", "2", "a-7", { progress: 0.7 });
    await send("progress", "3", "a-8", { progress: 0.3 });
    await acting(() => answer({ jobs: [record("3"), record("2", { progress: 0.7 })], cursor: "a-7", next: null }));
    await acting(settle);
    expect(now().jobs).toMatchObject([{ progress: 0.3 }, { progress: 0.7 }]);
    expect(ids()).toEqual(["3", "2"]);
    expect(ScriptedStream.asked).toHaveLength(2);
  });

  test("is read again for a job that is not in the list that was read meanwhile", async () => {
    let answer = (_: object) => {};
    const { send, now, ids } = await list();
    ScriptedStream.answers["/users/1/jobs"] = () => new Promise((resolve) => (answer = resolve));
    await acting(() => now().reload());
    await send("started", "4", "a-8");
    await acting(() => answer({ jobs: [record("3")], cursor: "a-7", next: null }));
    await acting(() => answer({ jobs: [record("4"), record("3")], cursor: "a-8", next: null }));
    await acting(settle);
    expect([ids(), ScriptedStream.asked.length]).toEqual([["4", "3"], 3]);
  });

  test("subscribes from where the list is", async () => {
    const { socket, answer } = await list();
    cleanup();
    await acting(() => pass(2000));
    expect(socket.isClosed).toBe(true);
    answer.cursor = "a-9";
    answer.jobs = [record("4")];
    renderHook(() => useJobs({ userId: "1", url }));
    expect(subscribed(await accept())).toEqual([["user_1", "a-9"]]);
  });

  test("continues after a loss of the connection, and is read again after a gap", async () => {
    const { socket, answer, ids, now } = await list();
    await acting(() => socket.end(1006));
    expect(now()).toMatchObject({ connection: "reconnecting", isLoaded: true });
    await acting(() => pass(1000));
    const again = await accept();
    expect(subscribed(again)).toEqual([["user_1", "a-5"]]);
    await acting(() => again.json({ ...event("completed", "3", "a-6", { title: "Milk" }), room: "user_1" }));
    expect(now().jobs[0]).toMatchObject({ status: "completed" });
    answer.jobs = [record("9")];
    await acting(() => again.control("subscribed", { room: "user_1", cursor: "b-1", replayed: 0, recovered: false }));
    await acting(() => pass(0));
    expect(ids()).toEqual(["9"]);
  });

  test("reports why it cannot be read, and tries again if that may help", async () => {
    const hook = renderHook(() => useJobs({ userId: "1", url }));
    await acting(() => pass(0));
    await acting(settle);
    expect(hook.result.current).toMatchObject({ isLoaded: false, error: "no such job" });
    await acting(() => pass(60_000));
    expect(ScriptedStream.asked).toHaveLength(1); // 404
    cleanup();
    ScriptedStream.answers["/users/2/jobs"] = () => Promise.reject(new TypeError("network"));
    const other = renderHook(() => useJobs({ userId: "2", url }));
    vi.stubGlobal("fetch", async () => Promise.reject(new TypeError("network")));
    await acting(() => pass(0));
    expect(other.result.current.error).toBe("network");
    vi.stubGlobal("fetch", async () => new Response(JSON.stringify({ jobs: [record("1")], cursor: "a-1", next: null })));
    await acting(() => pass(5000));
    expect(other.result.current).toMatchObject({ isLoaded: true, error: undefined, jobs: [{ requestId: "1" }] });
  });
});

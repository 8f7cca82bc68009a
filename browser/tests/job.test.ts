/** How a job stands, from what was heard of it: as the Python client's view does. */
import { describe, expect, test } from "vitest";
import { JobTracker } from "../src/job.js";

const RUN = { runId: "r", attempt: 1, maxAttempts: 4, stallAfterS: 60 };

const hear = (view: JobTracker, word: string, data: Record<string, unknown> = RUN, status = "pending") => {
  view.apply({ type: `report.creation.${word}`, data, status: status as "pending" });
  return view.state;
};

test("a job's life is what was heard of it", () => {
  const view = new JobTracker();
  expect(view.state).toEqual({ status: "idle", attempt: 1, text: "", isTextComplete: true });
  expect(hear(view, "started")).toMatchObject({ status: "pending", attempt: 1, maxAttempts: 4 });
  const told = { ...RUN, progress: 0.4, label: "Uploading", stallAfterS: 120 };
  expect(hear(view, "progress", told)).toMatchObject({ status: "pending", progress: 0.4, label: "Uploading" });
  expect(view.stallAfterMs).toBe(120_000);
  const retrying = hear(view, "retrying", { ...RUN, attempt: 2, error: "No paper.", retryInS: 5 });
  expect(retrying).toMatchObject({ status: "retrying", attempt: 2, maxAttempts: 4, error: "No paper." });
  expect([retrying.progress, retrying.label]).toEqual([undefined, undefined]); // they are void now
  view.markStalled();
  expect(view.state.status).toBe("stalled");
  expect(hear(view, "progress", { ...RUN, attempt: 2, progress: 0 })).toMatchObject({ status: "pending", progress: 0 });
  const end = hear(view, "completed", { pages: 3 }, "success");
  expect(end).toMatchObject({ status: "success", result: { pages: 3 }, error: undefined });
  expect([view.isOver, view.stallAfterMs]).toEqual([true, undefined]);
  view.markStalled();
  expect(hear(view, "started")).toBe(end);
  expect(hear(view, "failed", { error: "late", runId: "r" }, "error")).toBe(end);
});

test.each(["failed", "cancelled"])("%s is a bad end", (word) => {
  const view = new JobTracker();
  hear(view, "started");
  expect(hear(view, word, { error: "No paper.", runId: "r" }, "error")).toMatchObject({ status: "error", error: "No paper." });
  expect(view.isOver).toBe(true);
});

test("an end is known by its status, whatever a family calls it", () => {
  const view = new JobTracker();
  view.apply({ type: "conversation.response.generated", data: { response: "Hi" }, status: "success" });
  expect(view.state).toMatchObject({ status: "success", result: { response: "Hi" } });
});

test("what was written stays at the end, and what was shown of it", () => {
  const view = new JobTracker();
  hear(view, "progress", { ...RUN, progress: 0.5, label: "Writing" });
  hear(view, "delta", { ...RUN, index: 0, delta: "Hi" });
  expect(hear(view, "failed", { error: "x" }, "error")).toMatchObject({ text: "Hi", progress: 0.5, label: "Writing" });
});

describe("a text", () => {
  test("grows, and begins anew with index 0", () => {
    const view = new JobTracker();
    hear(view, "delta", { ...RUN, index: 0, delta: "Hel" });
    expect(hear(view, "delta", { ...RUN, index: 1, delta: "lo" }).text).toBe("Hello");
    expect(hear(view, "retrying", { ...RUN, attempt: 2, error: "Again." }).text).toBe("Hello");
    expect(hear(view, "delta", { ...RUN, attempt: 2, index: 0, delta: "Good" })).toMatchObject({
      text: "Good",
      status: "pending",
    });
  });

  test("a piece takes back that it seemed stalled", () => {
    const view = new JobTracker();
    hear(view, "started");
    view.markStalled();
    expect(hear(view, "delta", { ...RUN, index: 0, delta: "a" }).status).toBe("pending");
    expect(view.stallAfterMs).toBe(60_000);
  });
});

describe("a text that lacks a piece", () => {
  const delta = (view: JobTracker, index: unknown, piece: string, rest: object = {}) => {
    const { text, isTextComplete } = hear(view, "delta", { ...RUN, index, delta: piece, ...rest });
    return [text, isTextComplete];
  };

  test("at its beginning is not shown", () => {
    const view = new JobTracker();
    expect(delta(view, 3, "of the end")).toEqual(["", false]);
    expect(delta(view, 4, ".")).toEqual(["", false]);
    expect(delta(view, 0, "Anew", { attempt: 2 })).toEqual(["Anew", true]);
  });

  test("in its middle is shown up to there, whatever follows", () => {
    const view = new JobTracker();
    delta(view, 0, "a");
    expect(delta(view, 2, "c")).toEqual(["a", false]);
    expect(delta(view, 1, "b")).toEqual(["a", false]);
    expect(delta(view, 3, "d")).toEqual(["a", false]);
    expect(delta(view, 0, "x")).toEqual(["x", true]);
  });

  test("because something is gone may go on where it was", () => {
    const view = new JobTracker();
    delta(view, 0, "a");
    view.gap();
    expect([view.state.text, view.state.isTextComplete]).toEqual(["a", false]);
    expect(delta(view, 1, "b")).toEqual(["ab", true]);
    view.gap();
    expect(delta(view, 3, "d")).toEqual(["ab", false]);
  });

  test("of another attempt or run is no part of this one", () => {
    const view = new JobTracker();
    delta(view, 0, "first");
    expect(delta(view, 1, "second", { attempt: 2 })).toEqual(["", false]);
    expect(delta(view, 1, "late", { attempt: 1 })).toEqual(["", false]);
    expect(delta(view, 0, "second", { attempt: 2 })).toEqual(["second", true]);
    expect(delta(view, 0, "late", { attempt: 1 })).toEqual(["second", true]);
    expect(delta(view, 1, "other", { attempt: 2, runId: "s" })).toEqual(["", false]);
  });

  test("comes twice: once", () => {
    const view = new JobTracker();
    delta(view, 0, "a");
    delta(view, 1, "b");
    expect(delta(view, 1, "b")).toEqual(["ab", true]);
  });

  test.each([undefined, "0", -1, 1.5, NaN, null, true])("whose place is no place is no piece: %j", (index) => {
    const view = new JobTracker();
    delta(view, 0, "a");
    expect(delta(view, index, "b")).toEqual(["a", false]);
  });

  test.each([{ response: "whole" }, { result: "whole" }, { text: "whole" }])("is whole at the end that brings it: %j", (data) => {
    const view = new JobTracker();
    delta(view, 3, "le");
    expect(hear(view, "completed", data, "success")).toMatchObject({ text: "whole", isTextComplete: true });
  });

  test("stays so at an end that does not, and after it", () => {
    const view = new JobTracker();
    delta(view, 3, "le");
    expect(hear(view, "completed", { pages: 3 }, "success")).toMatchObject({ text: "", isTextComplete: false });
    view.gap();
    expect(delta(view, 0, "late")).toEqual(["", false]);
  });

  test("and one that lacks none is not exchanged", () => {
    const view = new JobTracker();
    delta(view, 0, "Hi");
    expect(hear(view, "completed", { response: "Hi." }, "success")).toMatchObject({ text: "Hi", isTextComplete: true });
  });
});

test("a good end is all of its progress, a bad one what there was", () => {
  const view = new JobTracker();
  hear(view, "progress", { ...RUN, progress: 0.5 });
  expect(hear(view, "completed", {}, "success").progress).toBe(1);
  const bad = new JobTracker();
  hear(bad, "progress", { ...RUN, progress: 0.5 });
  expect(hear(bad, "failed", { error: "x" }, "error").progress).toBe(0.5);
});

test("a wait without a limit never stalls", () => {
  const view = new JobTracker();
  hear(view, "started");
  expect(view.stallAfterMs).toBe(60_000);
  hear(view, "progress", { runId: "r", attempt: 1 });
  expect(view.stallAfterMs).toBe(undefined);
});

test("nothing heard is not stalled", () => {
  const view = new JobTracker();
  view.markStalled();
  expect(view.state.status).toBe("idle");
});

test.each(["x", -1, true, null, [], {}])("junk from others is no news: %j", (junk) => {
  const names = ["attempt", "maxAttempts", "progress", "label", "error", "stallAfterS", "index", "delta"];
  const data = Object.fromEntries(names.map((name) => [name, junk]));
  for (const word of ["started", "progress", "delta", "retrying"]) {
    const view = new JobTracker();
    const { attempt, progress, maxAttempts, text, label, error } = hear(view, word, data);
    expect([attempt, progress, maxAttempts, view.stallAfterMs]).toEqual([1, undefined, undefined, undefined]);
    for (const shown of [text, label, error]) expect([undefined, "", "x"]).toContain(shown);
  }
});

test("each state is a new object: who compares sees a change", () => {
  const view = new JobTracker();
  const before = view.state;
  expect(hear(view, "started")).not.toBe(before);
});

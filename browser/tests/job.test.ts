/** The state of a job, derived from its notifications, as in the Python client. */
import { describe, expect, test } from "vitest";
import { JobTracker } from "../src/job.js";

const RUN = { runId: "r", attempt: 1, maxAttempts: 4, stallAfterS: 60 };

const apply = (tracker: JobTracker, event: string, data: Record<string, unknown> = RUN, status = "pending") => {
  tracker.apply({ type: `report.creation.${event}`, data, status: status as "pending" });
  return tracker.state;
};

test("the state follows the notifications of a job", () => {
  const tracker = new JobTracker();
  expect(tracker.state).toEqual({ status: "idle", attempt: 1, text: "", isTextComplete: true });
  expect(apply(tracker, "started")).toMatchObject({ status: "pending", attempt: 1, maxAttempts: 4 });
  const progress = { ...RUN, progress: 0.4, label: "Uploading", stallAfterS: 120 };
  expect(apply(tracker, "progress", progress)).toMatchObject({ status: "pending", progress: 0.4, label: "Uploading" });
  expect(tracker.stallAfterMs).toBe(120_000);
  const retrying = apply(tracker, "retrying", { ...RUN, attempt: 2, error: "No paper.", retryInS: 5 });
  expect(retrying).toMatchObject({ status: "retrying", attempt: 2, maxAttempts: 4, error: "No paper." });
  expect([retrying.progress, retrying.label]).toEqual([undefined, undefined]); // reset by the retry
  tracker.markStalled();
  expect(tracker.state.status).toBe("stalled");
  expect(apply(tracker, "progress", { ...RUN, attempt: 2, progress: 0 })).toMatchObject({ status: "pending", progress: 0 });
  const end = apply(tracker, "completed", { pages: 3 }, "success");
  expect(end).toMatchObject({ status: "success", result: { pages: 3 }, error: undefined });
  expect([tracker.isFinished, tracker.stallAfterMs]).toEqual([true, undefined]);
  tracker.markStalled();
  expect(apply(tracker, "started")).toBe(end);
  expect(apply(tracker, "failed", { error: "late", runId: "r" }, "error")).toBe(end);
});

test.each(["failed", "cancelled"])("%s ends the job with an error", (event) => {
  const tracker = new JobTracker();
  apply(tracker, "started");
  expect(apply(tracker, event, { error: "No paper.", runId: "r" }, "error")).toMatchObject({ status: "error", error: "No paper." });
  expect(tracker.isFinished).toBe(true);
});

test("a terminal notification is recognized by its status, whatever its type", () => {
  const tracker = new JobTracker();
  tracker.apply({ type: "conversation.response.generated", data: { response: "Hi" }, status: "success" });
  expect(tracker.state).toMatchObject({ status: "success", result: { response: "Hi" } });
});

test("the text and the progress are kept when the job fails", () => {
  const tracker = new JobTracker();
  apply(tracker, "progress", { ...RUN, progress: 0.5, label: "Writing" });
  apply(tracker, "delta", { ...RUN, offset: 0, delta: "Hi" });
  expect(apply(tracker, "failed", { error: "x" }, "error")).toMatchObject({ text: "Hi", progress: 0.5, label: "Writing" });
});

describe("a text", () => {
  test("grows, and restarts with offset 0", () => {
    const tracker = new JobTracker();
    apply(tracker, "delta", { ...RUN, offset: 0, delta: "Hel" });
    expect(apply(tracker, "delta", { ...RUN, offset: 3, delta: "lo" }).text).toBe("Hello");
    expect(apply(tracker, "retrying", { ...RUN, attempt: 2, error: "Again." }).text).toBe("Hello");
    expect(apply(tracker, "delta", { ...RUN, attempt: 2, offset: 0, delta: "Good" })).toMatchObject({
      text: "Good",
      status: "pending",
    });
  });

  test("a piece clears the stalled state", () => {
    const tracker = new JobTracker();
    apply(tracker, "started");
    tracker.markStalled();
    expect(apply(tracker, "delta", { ...RUN, offset: 0, delta: "a" }).status).toBe("pending");
    expect(tracker.stallAfterMs).toBe(60_000);
  });
});

describe("a text that the server folds", () => {
  const piece = (tracker: JobTracker, offset: number, delta: string, data: object = {}) => {
    const fold = { key: "r:text", mode: "append", attempt: 1000, offset };
    tracker.apply({ type: "a.delta", data: { ...RUN, index: 9, delta, ...data }, status: "pending", fold });
    return tracker.state;
  };

  test("is placed by its offset, whatever number the attempt of a step has", () => {
    const tracker = new JobTracker();
    piece(tracker, 0, "a😀", { attempt: 3 });
    expect(piece(tracker, 2, "b", { attempt: 3 }).text).toBe("a😀b");
    expect(piece(tracker, 0, "step two", { attempt: 1 }).text).toBe("step two");
    expect(piece(tracker, 8, "!", { attempt: 1 })).toMatchObject({ text: "step two!", isTextComplete: true });
  });

  test("goes on without fold, by data.offset", () => {
    const tracker = new JobTracker();
    piece(tracker, 0, "a😀");
    expect(apply(tracker, "delta", { ...RUN, index: 4, delta: "b", offset: 2 }).text).toBe("a😀b");
    expect(apply(tracker, "delta", { ...RUN, index: 5, delta: "c", offset: 3 })).toMatchObject({ text: "a😀bc", isTextComplete: true });
    expect(apply(tracker, "delta", { ...RUN, index: 7, delta: "e", offset: 5 })).toMatchObject({ text: "a😀bc", isTextComplete: false });
  });

  test("continues the text of a record, which also says how long the run may be silent", () => {
    const tracker = new JobTracker();
    const record = { type: "a", status: "running", runId: "r", attempt: 2, truncated: false, text: "a😀", stallAfterS: 9 } as const;
    tracker.restore(record as never);
    expect(tracker.stallAfterMs).toBe(9000);
    expect(piece(tracker, 2, "b", { attempt: 2 }).text).toBe("a😀b");
  });
});

describe("a text with a missing piece", () => {
  const delta = (tracker: JobTracker, offset: unknown, piece: string, rest: object = {}) => {
    const { text, isTextComplete } = apply(tracker, "delta", { ...RUN, index: 1, offset, delta: piece, ...rest });
    return [text, isTextComplete];
  };

  test("at its beginning is empty", () => {
    const tracker = new JobTracker();
    expect(delta(tracker, 3, "of the end")).toEqual(["", false]);
    expect(delta(tracker, 4, ".")).toEqual(["", false]);
    expect(delta(tracker, 0, "Anew", { attempt: 2 })).toEqual(["Anew", true]);
  });

  test("in its middle ends before the missing piece, until a piece fits", () => {
    const tracker = new JobTracker();
    delta(tracker, 0, "a");
    expect(delta(tracker, 2, "c")).toEqual(["a", false]);
    expect(delta(tracker, 3, "d")).toEqual(["a", false]);
    expect(delta(tracker, 1, "bc")).toEqual(["abc", true]);
    expect(delta(tracker, 0, "x")).toEqual(["x", true]);
  });

  test("after a gap may continue where it was", () => {
    const tracker = new JobTracker();
    delta(tracker, 0, "a");
    tracker.gap();
    expect([tracker.state.text, tracker.state.isTextComplete]).toEqual(["a", false]);
    expect(delta(tracker, 1, "b")).toEqual(["ab", true]);
    tracker.gap();
    expect(delta(tracker, 3, "d")).toEqual(["ab", false]);
  });

  test("does not take pieces of another attempt or run", () => {
    const tracker = new JobTracker();
    delta(tracker, 0, "first");
    expect(delta(tracker, 1, "second", { attempt: 2 })).toEqual(["", false]);
    expect(delta(tracker, 1, "late", { attempt: 1 })).toEqual(["", false]);
    expect(delta(tracker, 0, "second", { attempt: 2 })).toEqual(["second", true]);
    expect(delta(tracker, 0, "late", { attempt: 1 })).toEqual(["second", true]);
    expect(delta(tracker, 1, "other", { attempt: 2, runId: "s" })).toEqual(["", false]);
  });

  test("ignores a duplicate piece", () => {
    const tracker = new JobTracker();
    delta(tracker, 0, "a");
    delta(tracker, 1, "b");
    expect(delta(tracker, 1, "b")).toEqual(["ab", true]);
  });

  test.each([undefined, "0", -1, 1.5, NaN, null, true])("does not take a piece with an invalid offset: %j", (offset) => {
    const tracker = new JobTracker();
    delta(tracker, 0, "a");
    expect(delta(tracker, offset, "b")).toEqual(["a", false]);
  });

  test.each([{ response: "whole" }, { result: "whole" }, { text: "whole" }])("is replaced by the whole text of the result: %j", (data) => {
    const tracker = new JobTracker();
    delta(tracker, 3, "le");
    expect(apply(tracker, "completed", data, "success")).toMatchObject({ text: "whole", isTextComplete: true });
  });

  test("stays incomplete if the result has no text", () => {
    const tracker = new JobTracker();
    delta(tracker, 3, "le");
    expect(apply(tracker, "completed", { pages: 3 }, "success")).toMatchObject({ text: "", isTextComplete: false });
    tracker.gap();
    expect(delta(tracker, 0, "late")).toEqual(["", false]);
  });

  test("a complete text is not replaced", () => {
    const tracker = new JobTracker();
    delta(tracker, 0, "Hi");
    expect(apply(tracker, "completed", { response: "Hi." }, "success")).toMatchObject({ text: "Hi", isTextComplete: true });
  });
});

test("success sets the progress to 1, and failure keeps it", () => {
  const tracker = new JobTracker();
  apply(tracker, "progress", { ...RUN, progress: 0.5 });
  expect(apply(tracker, "completed", {}, "success").progress).toBe(1);
  const bad = new JobTracker();
  apply(bad, "progress", { ...RUN, progress: 0.5 });
  expect(apply(bad, "failed", { error: "x" }, "error").progress).toBe(0.5);
});

test("a step without stallAfterS never stalls", () => {
  const tracker = new JobTracker();
  apply(tracker, "started");
  expect(tracker.stallAfterMs).toBe(60_000);
  apply(tracker, "progress", { runId: "r", attempt: 1 });
  expect(tracker.stallAfterMs).toBe(undefined);
});

test("a job without notifications is not stalled", () => {
  const tracker = new JobTracker();
  tracker.markStalled();
  expect(tracker.state.status).toBe("idle");
});

test.each(["x", -1, true, null, [], {}, Infinity, 1e300])("invalid values are ignored: %j", (junk) => {
  const names = ["attempt", "maxAttempts", "progress", "label", "error", "stallAfterS", "index", "delta"];
  const data = Object.fromEntries(names.map((name) => [name, junk]));
  for (const event of ["started", "progress", "delta", "retrying"]) {
    const tracker = new JobTracker();
    const { attempt, progress, maxAttempts, text, label, error } = apply(tracker, event, data);
    expect([attempt, progress, maxAttempts, tracker.stallAfterMs]).toEqual([1, undefined, undefined, undefined]);
    for (const shown of [text, label, error]) expect([undefined, "", "x"]).toContain(shown);
  }
});

test("what the server has kept replaces all that was known", () => {
  const tracker = new JobTracker();
  apply(tracker, "progress", { ...RUN, progress: 0.5, label: "Writing" });
  apply(tracker, "retrying", { ...RUN, attempt: 2, error: "No paper." });
  apply(tracker, "progress", { ...RUN, attempt: 2, progress: 0.9, label: "Printing" });
  tracker.restore({ type: "a", status: "running", runId: "s", attempt: 1 });
  const { progress, label, error, maxAttempts } = tracker.state;
  expect([tracker.state.attempt, progress, label, error, maxAttempts]).toEqual([1, undefined, undefined, undefined, undefined]);
});

test("another run has nothing of the one before, whose events come too late", () => {
  const tracker = new JobTracker();
  apply(tracker, "progress", { ...RUN, progress: 0.5, label: "Writing" });
  const of = (runId: string, event: string) => {
    const job = { event, name: "a", runId };
    tracker.apply({ type: `a.${event}`, data: { error: "Stopped." }, status: event === "cancelled" ? "error" : "pending", job });
    return tracker.state;
  };
  of("s", "started");
  expect(of("r", "cancelled")).toMatchObject({ status: "pending" });
  expect(of("s", "cancelled")).toMatchObject({ status: "error", error: "Stopped.", progress: undefined, label: undefined });
});

test("each state is a new object", () => {
  const tracker = new JobTracker();
  const before = tracker.state;
  expect(apply(tracker, "started")).not.toBe(before);
});

/** The rules of records of jobs: tests/protocol/job_vectors.json, which all servers share. PROTOCOL.md, "Job state". */

import { expect, test } from "vitest";

import vectors from "../../tests/protocol/job_vectors.json";
import { checkJob, foldJob, jobEventOf, runOfKey, type JobRecord } from "../src/protocol/job_state";

type Wire = Record<string, unknown>;

for (const { name, notifications, records } of vectors.sequences) {
  test(`the record after each notification: ${name}`, () => {
    let record: JobRecord | undefined;
    for (const [n, wire] of (notifications as Wire[]).entries()) {
      checkJob(wire["job"]);
      const before = JSON.stringify(record);
      const next = foldJob(record, jobEventOf(wire));
      expect(JSON.stringify(record)).toBe(before); // it is not changed, but replaced
      if (n > 0 && JSON.stringify(records[n]) === JSON.stringify(records[n - 1])) expect(next).toEqual(record);
      record = next;
      expect(JSON.parse(JSON.stringify(record))).toEqual(records[n]);
    }
  });
}

test("an invalid member of job is named", () => {
  for (const { job, details } of vectors.invalid) expect(() => checkJob(job)).toThrow(details);
});

test("an event without an effect returns the same record", () => {
  const note = (event: string, data = {}) =>
    jobEventOf({ job: { event, name: "n", runId: "r1" }, data, timestamp: "2026-01-31T12:00:00.000Z" });
  const ended = foldJob(undefined, note("failed"));
  expect(foldJob(ended, note("progress"))).toBe(ended);
  const running = foldJob(undefined, note("started", { attempt: 2 }));
  expect(foldJob(running, note("progress", { attempt: 1 }))).toBe(running);
});

test("the keys of a run are recognized", () => {
  const keys = ["r1:text", "a:b:progress", "text", "r1:other", "r1", ":text"];
  expect(keys.map(runOfKey)).toEqual(["r1", "a:b", undefined, undefined, undefined, ""]);
});

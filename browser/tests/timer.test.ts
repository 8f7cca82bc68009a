import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createTimer } from "../src/timer.js";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("a delay that setTimeout cannot hold is a long one, not none", () => {
  const then = vi.fn();
  const delays = vi.spyOn(globalThis, "setTimeout");
  createTimer().start(40 * 86_400_000, then);
  expect(delays.mock.calls[0]![1]).toBeLessThan(2 ** 31);
  vi.advanceTimersByTime(86_400_000);
  expect(then).not.toHaveBeenCalled();
});

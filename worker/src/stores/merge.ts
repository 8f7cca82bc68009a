/** Two lists in the order of the log. */

/** Return the elements of both lists by their offsets, which both have in ascending order. */
export function* mergeByOffset<One extends { offset: number }, Other extends { offset: number }>(
  ones: Iterable<One>,
  others: Iterable<Other>,
): Generator<One | Other> {
  const rest = others[Symbol.iterator]();
  let other = rest.next();
  for (const one of ones) {
    for (; other.done !== true && other.value.offset < one.offset; other = rest.next()) yield other.value;
    yield one;
  }
  for (; other.done !== true; other = rest.next()) yield other.value;
}

/** State that survives a reload. */
import { useEffect, useState } from "react";

export function useKept<Value>(key: string, first: () => Value): [Value, (change: (value: Value) => Value) => void] {
  const [value, setValue] = useState<Value>(() => {
    try {
      return JSON.parse(localStorage.getItem(key) ?? "") as Value;
    } catch {
      return first();
    }
  });
  useEffect(() => localStorage.setItem(key, JSON.stringify(value)), [key, value]);
  return [value, setValue];
}

/** For a test: wait in the page until something is so, without a timer, which a hidden page may not have. */
declare global {
  function until(condition: string): Promise<void>;
}

const looks = new Set<() => void>();

/** Something may be so now that was not before. */
export function changed(): void {
  for (const look of [...looks]) look();
}

globalThis.until = (condition) =>
  new Promise((resolve, reject) => {
    const isSo = new Function(`return ${condition}`) as () => boolean;
    const look = () => {
      try {
        if (!isSo()) return;
        resolve();
      } catch (error) {
        reject(error);
      }
      looks.delete(look);
    };
    looks.add(look);
    look();
  });

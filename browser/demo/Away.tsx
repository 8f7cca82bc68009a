import { notificationText, type AppMessage } from "./words.js";

/** Results that came in while the page was closed or hidden. */
export function Away({ messages, onRead }: { messages: AppMessage[]; onRead: () => void }) {
  if (messages.length === 0) return null;
  return (
    <section className="away" aria-labelledby="away">
      <h2 id="away">While you were away</h2>
      <ul>
        {messages.map((message) => (
          <li key={message.id} data-bad={message.status === "error"}>
            <time dateTime={message.timestamp}>{new Date(message.timestamp ?? "").toLocaleTimeString("en-GB")}</time>{" "}
            {notificationText(message)}
          </li>
        ))}
      </ul>
      <button type="button" onClick={onRead}>
        Dismiss
      </button>
    </section>
  );
}

// Let the keyboard scroll the tables and diagrams that are wider than the screen.
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) {
      target.tabIndex = 0;
      target.setAttribute("role", "group");
      target.setAttribute("aria-label", "Scrolls sideways");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name);
    }
  }
});

// Copy the commands of a terminal without the prompt and without what they print.
function commands(text) {
  let continues = false;
  return text.split("\n").filter((line) => {
    const isPart = continues || line.startsWith("$ ");
    continues = isPart && line.endsWith("\\");
    return isPart;
  }).map((line) => line.replace(/^\$ /, "")).join("\n");
}

// The theme wraps each table when it is shown, and adds the buttons.
function improve() {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, .diagram")) sizes.observe(wide);
  for (const button of document.querySelectorAll(".language-console .md-code__button:not([data-clipboard-text])")) {
    const code = button.closest(".language-console").querySelector("code");
    button.dataset.clipboardText = commands(code.textContent);
  }
}
new MutationObserver(improve).observe(document.querySelector(".md-content"), { childList: true, subtree: true });
improve();

// The search has its own styles, in a shadow root: the path of a result is too pale there.
const readable = new CSSStyleSheet();
readable.replaceSync("menu, menu * { color: inherit !important; }");
new MutationObserver(() => {
  for (const { shadowRoot } of document.body.children) {
    if (shadowRoot && !shadowRoot.adoptedStyleSheets.includes(readable)) {
      shadowRoot.adoptedStyleSheets.push(readable);
    }
  }
}).observe(document.body, { childList: true });

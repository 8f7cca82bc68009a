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

// The theme wraps each table when it is shown.
function observeWide() {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, .diagram")) sizes.observe(wide);
}
new MutationObserver(observeWide).observe(document.querySelector(".md-content"), { childList: true, subtree: true });
observeWide();

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

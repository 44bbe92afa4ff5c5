"""Font and colours of all figures."""

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


INK = "#1f2933"


HEAD = "#3e4c59"


GHOST = {"fill": "#ffffff", "line": "#d5dbe1", "text": "#a3afbb"}

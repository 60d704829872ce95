"""What MkDocs runs while it builds these pages."""


def on_page_content(html: str, **_: object) -> str:
    """Options without a default say so: mkdocs-click 0.9 shows the name of click 8.5's own mark for it."""
    return html.replace("<code>Sentinel.UNSET</code>", "–")

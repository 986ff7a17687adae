"""A page as a browser would take it apart: strictly nested tags, attributes, words, exact figures."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Self

_VOID = {"meta", "br"}


@dataclass(frozen=True, slots=True)
class Tag:
    name: str
    attributes: dict[str, str]


@dataclass
class Page(HTMLParser):
    """Fails where a tag is not closed in its turn."""

    tags: list[Tag] = field(default_factory=list)
    words: str = ""
    style: str = ""
    _open: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, source: str) -> Self:
        page = cls()
        HTMLParser.__init__(page)
        page.feed(source)
        page.close()
        assert not page._open, page._open
        return page

    def named(self, *names: str) -> list[Tag]:
        return [tag for tag in self.tags if tag.name in names]

    @property
    def figures(self) -> set[float]:
        return {float(tag.attributes["value"]) for tag in self.named("data")}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), attrs
        self.tags.append(Tag(tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
        else:
            self.words += data

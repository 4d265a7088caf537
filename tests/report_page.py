"""A written report page: its tags and text, and the check that it loads nothing; `tests` is on the path."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, source):
        super().__init__()
        self.source, self.tags, self.text = source, [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def classes(self):
        return [attributes.get("class", "") for _, attributes in self.tags]

    def captions(self):
        return re.findall("<figcaption>(.*?)</figcaption>", self.source)

    def tiles(self):
        return re.findall('<div class="tile">(.*?)<b>(.*?)</b><small>(.*?)</small>', self.source)


def assert_loads_nothing_and_runs_nothing(page):
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "srcset", "data", "action"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", page.source)

"""`fuse studio`: a web page of this machine for plan, inspect, merge and ask. What it shows is made without a browser.

The rooms `jobs`, `form`, `planned`, `inspected`, `merged`, `asked` and `state` know no page; `page` and its parts are a
thin room on top, in nicegui; `guard` and `serve` let in the user of this machine alone.
"""

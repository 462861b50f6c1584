"""Pages made from the templates of a package."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


@functools.cache
def page_template(package: str, **filters: Callable[..., str]) -> "jinja2.Template":
    """A package's templates/page.html; it fails where it uses a name that it is not given."""
    import jinja2  # here, since what is wrong with the data need not wait for it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template("page.html")

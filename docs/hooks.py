"""What mkdocs does not do by itself: pages from elsewhere, links, public names.

The pages link to each other as files of the repository, so that a link works on the code host, too.
"""

import pathlib
import posixpath
import re

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
OF_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
# Code, in which nothing is a link, or the target of a link.
_CODE_OR_LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|(?<=\]\()[^)\s]+(?=\))", re.DOTALL | re.MULTILINE
)


def on_files(files, config):
    """Adds results/ and pages of the root, where they stand, and the notebooks as pages."""
    for name in OF_ROOT:
        files.append(File(name, str(ROOT), config.site_dir, False))
    for path in sorted((ROOT / "results").glob("*.*")):
        if path.suffix in {".md", ".png", ".csv"}:
            files.append(File(f"results/{path.name}", str(ROOT), config.site_dir, False))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        name = f"notebooks/{path.stem}.md"
        files.append(
            File.generated(config, name, content=page_of_notebook(path.read_text("utf-8")))
        )
    return files


def page_of_notebook(source):
    """The page of a notebook whose source has the cells `# %%` and `# %% [markdown]`."""
    parts = []
    for cell in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        kind, _, text = cell.partition("\n")
        if kind.strip() == "[markdown]":
            parts.append(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{text.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def in_repository(src_uri):
    """Where the source of a page stands in the repository."""
    from_elsewhere = src_uri.startswith("results/") or src_uri in OF_ROOT
    return src_uri if from_elsewhere else f"docs/{src_uri}"


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages."""
    here = posixpath.dirname(in_repository(page.file.src_uri))

    def on_site(match):
        link = match[0]
        if link.startswith(("`", "#")) or re.match(r"[a-z]+:", link):
            return link
        path, mark, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(here, path))
        uri = target.removeprefix("docs/")
        if files.get_file_from_path(uri) is None and not (ROOT / target).exists():
            return link  # of which mkdocs says that it is broken
        if files.get_file_from_path(uri) is None:
            raise PluginError(f"{page.file.src_uri}: {link} is no page of the site")
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri)) + mark + anchor

    return _CODE_OR_LINK.sub(on_site, markdown)


def load_package():
    return griffe.load("rigl_tf", search_paths=[str(ROOT)], allow_inspection=False)


def _public(module):
    """The public members of a module by name, and `function` for a module that is named as it."""
    for name in module.exports or module.members:
        member = module.members[name]
        if not member.is_public or (member.is_alias and name not in (module.exports or ())):
            continue
        member = member.final_target if member.is_alias else member
        if member.is_module and name in member.members:
            member = member.members[name]
        yield name, member


def public_names(package):
    """The public names, and the paths they stand at: of `rigl_tf`, and of each module in it."""
    for name, member in _public(package):
        if not member.is_module:
            yield f"rigl_tf.{name}", member.path
            continue
        for inner, each in _public(member):
            if each.is_function or each.is_class:
                yield f"{member.path}.{inner}", each.path


def on_post_build(config):
    """Fails if a public name stands on no page of the reference."""
    pages = (pathlib.Path(config.site_dir) / "api").glob("*.html")
    there = {
        name for page in pages for name in re.findall(r'id="([\w.]+)"', page.read_text("utf-8"))
    }
    names = list(public_names(load_package()))
    missing = sorted(name for name, path in names if not {name, path} & there)
    if missing or not names:
        raise PluginError(f"Not in the API reference, or without a docstring: {', '.join(missing)}")

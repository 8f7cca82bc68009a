"""``@synap/realtime`` as npm packs it."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from synap_realtime import AsyncBroadcaster
from tests.support.npm import BIN, BROWSER, run, tool
from tests.support.timeouts import TIMEOUT_S


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    run(BIN / "npm", "pack", "--silent", "--pack-destination", folder)
    (found,) = folder.iterdir()
    return found


def test_its_own_tests() -> None:
    tool("vitest", "run")


def test_valid_uses_compile_and_invalid_uses_do_not() -> None:
    """In tests/types.tsx each wrong line is marked: a mark without an error is an error."""
    tool("tsc")


def test_bundle_size_is_bounded() -> None:
    run(BIN / "node", "scripts/size.mjs")


def test_publint_finds_nothing(tarball: Path) -> None:
    assert "All good!" in tool("publint", tarball, "--strict")


def test_its_types_are_right_for_every_resolver(tarball: Path) -> None:
    """But CommonJS and node10, which get an ESM package by ``import()`` alone."""
    tool("attw", tarball, "--profile", "esm-only")


def test_packs_only_package_files(tarball: Path) -> None:
    names = run("tar", "-tzf", tarball).split()
    assert all(name.startswith("package/dist/") for name in names if name.count("/") > 1)
    assert {name.removeprefix("package/") for name in names if name.count("/") == 1} == {
        "LICENSE", "README.md", "package.json",
    }  # fmt: skip


def test_import_needs_no_browser_globals(tarball: Path, tmp_path: Path) -> None:
    """Neither a window nor a document; React is only for who imports the hooks."""
    run("tar", "-xzf", tarball, "-C", tmp_path)
    code = """
        const before = new Set(Reflect.ownKeys(globalThis));
        for (const name of ["window", "document", "localStorage", "navigator", "WebSocket"])
          Object.defineProperty(globalThis, name, { get() { throw new Error(name); } });
        const { subscribe, subscribeShared } = await import("./package/dist/index.js");
        const { JobTracker } = await import("./package/dist/job.js");
        console.log(typeof subscribe, typeof subscribeShared, typeof JobTracker);
    """
    said = run(BIN / "node", "--input-type=module", "-e", code, cwd=tmp_path)
    assert said.split() == ["function"] * 3


async def test_subscribes_in_node(tarball: Path, tmp_path: Path, rooms: str) -> None:
    """Without a page: a real server, the packed files, and a job on the other side."""
    run("tar", "-xzf", tarball, "-C", tmp_path)
    code = """
        const { subscribe } = await import("./package/dist/index.js");
        const { JobTracker } = await import("./package/dist/job.js");
        const tracker = new JobTracker();
        const subscription = subscribe("request_r1", {
          url: process.argv[1],
          onStateChange: ({ status }) => status === "open" && console.log(status),
          onNotification: (notification) => {
            tracker.apply(notification);
            console.log(tracker.state.status, tracker.state.progress ?? "", tracker.state.text);
            if (tracker.isFinished) subscription.close();
          },
        });
    """
    node = await asyncio.create_subprocess_exec(
        BIN / "node", "--input-type=module", "-e", code, rooms, cwd=tmp_path, stdout=PIPE
    )
    assert node.stdout is not None
    assert await asyncio.wait_for(node.stdout.readline(), TIMEOUT_S) == b"open\n"
    async with AsyncBroadcaster(rooms) as broadcaster:
        for word, data in (
            ("progress", {"progress": 0.5}), ("delta", {"offset": 0, "delta": "Hello"}),
            ("completed", {"title": "Milk"}),
        ):  # fmt: skip
            message = {
                "type": f"note.creation.{word}", "data": data,
                "status": "success" if word == "completed" else "pending",
            }  # fmt: skip
            assert (await broadcaster.broadcast("request_r1", message)).success
    said, _ = await asyncio.wait_for(node.communicate(), TIMEOUT_S)
    assert said.decode().splitlines() == ["pending 0.5 ", "pending 0.5 Hello", "success 1 Hello"]
    assert node.returncode == 0


def test_a_fresh_app_builds_with_it(tarball: Path, tmp_path: Path) -> None:
    """Installed from the tarball into an app made with Vite, and type-checked there."""
    versions = json.loads((BROWSER / "package.json").read_text())["devDependencies"]
    names = ("@types/react", "@types/react-dom", "react", "react-dom", "typescript", "vite")
    package = {
        "private": True,
        "type": "module",
        "dependencies": {name: versions[name] for name in names}
        | {"@synap/realtime": f"file:{tarball}"},
    }
    (tmp_path / "package.json").write_text(json.dumps(package))
    (tmp_path / "index.html").write_text('<script type="module" src="/main.tsx"></script>')
    (tmp_path / "main.tsx").write_text("""
        import { createRoot } from "react-dom/client";
        import { useJob, useSynapRealtime } from "@synap/realtime/react";
        function App() {
          const { lastMessage, isConnected } = useSynapRealtime({ userId: "user-123" });
          const { text } = useJob("request-456");
          const title = lastMessage?.type === "note.creation.completed" && lastMessage.data.title;
          return <p>{isConnected ? "live" : "away"} {title} {text}</p>;
        }
        createRoot(document.body).render(<App />);
    """)
    options = {
        "strict": True, "module": "ESNext", "moduleResolution": "Bundler", "noEmit": True,
        "target": "ES2022", "jsx": "react-jsx", "lib": ["ES2022", "DOM"],
    }  # fmt: skip
    config = {"compilerOptions": options, "include": ["main.tsx"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefer-offline")
    run(BIN / "npm", "install", *quiet, cwd=tmp_path)
    node_modules = tmp_path / "node_modules"
    run(BIN / "node", node_modules / "typescript" / "bin" / "tsc", cwd=tmp_path)
    run(BIN / "node", node_modules / "vite" / "bin" / "vite.js", "build", cwd=tmp_path)
    built = {
        each.name.partition("-")[0]: each.read_text()
        for each in (tmp_path / "dist" / "assets").glob("*.js")
    }
    # What only some pages need is loaded later.
    assert built.keys() == {"index", "shared", "stream"}
    assert "synap.v2" in built["index"]
    assert "text/event-stream" in built["stream"]
    assert "text/event-stream" not in built["index"]

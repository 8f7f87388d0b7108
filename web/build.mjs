// Builds the script of the page into the template, beside its other files, or into the folder that is named as the only argument.
// The same lock gives the same bytes on every machine: a test compares them.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const to = process.argv[2] ?? join(here, "../template/src/agent/web/page");
const { packages } = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8"));

mkdirSync(to, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: ["src/page.ts"],
  outfile: join(to, "talk.js"),
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  legalComments: "none",
  banner: { js: "// Built by `make page`; what it is made of, and under which licenses: LICENSES.txt" },
});
writeFileSync(join(to, "LICENSES.txt"), licenses());

/** What the page is built from, each with its license; a text that several have is there once. */
function licenses() {
  const parts = new Map();
  for (const [path, { version, license, dev }] of Object.entries(packages)) {
    if (!path || dev || path.includes("/@types/")) continue;
    const file = readdirSync(join(here, path)).find((name) => /^licen[cs]e/i.test(name));
    const text = file ? readFileSync(join(here, path, file), "utf8") : `(${license})`;
    const plain = text.replace(/\r/g, "").replace(/[ \t]+$/gm, "").trim();
    const name = `${path.replace(/^.*node_modules\//, "")} ${version} (${license})`;
    parts.set(plain, [...(parts.get(plain) ?? []), name]);
  }
  const line = "-".repeat(80);
  const texts = [...parts].map(([text, names]) => `${names.join("\n")}\n\n${text}\n`);
  return `talk.js is built from these packages.\n\n${texts.join(`\n${line}\n`)}`;
}

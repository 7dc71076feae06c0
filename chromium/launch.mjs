import path from 'path';
import {pathToFileURL} from 'url';
import fs from 'fs';

/** Starts a headless Chromium by puppeteer-core, which is in the folder `modules`. */
export async function launch(modules, chromium) {
  const folder = path.resolve(modules, 'puppeteer-core');
  const {main, exports: exported} = JSON.parse(fs.readFileSync(path.join(folder, 'package.json')));
  const entry = exported?.['.']?.import ?? exported?.['.']?.default ?? exported?.['.'] ?? main;
  const file = typeof entry === 'string' ? entry : entry.default;
  const {default: puppeteer} = await import(pathToFileURL(path.join(folder, file)));
  return puppeteer.launch({
    executablePath: chromium, headless: true,
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
  });
}

// Opens a page in headless Chromium and prints what it reports, and what went wrong, as JSON:
// `node page.mjs MODULES CHROMIUM URL [SCREENSHOT]`; MODULES is a folder with puppeteer-core.
import {launch} from './launch.mjs';

const [modules, chromium, url, screenshot] = process.argv.slice(2);
const browser = await launch(modules, chromium);
const errors = [];
let report = null;
try {
  const page = await browser.newPage();
  await page.setViewport({width: 800, height: 900});
  page.on('console', message => {
    // LiteRT.js writes its whole log to `console.error`, each line with its level.
    const isError = ['error', 'assert'].includes(message.type());
    if (isError && !/^(INFO|WARNING|VERBOSE): /.test(message.text())) errors.push(message.text());
  });
  page.on('pageerror', error => errors.push(String(error)));
  page.on('requestfailed', request => errors.push(`${request.url()} failed`));
  page.on('response', response => {
    if (response.status() >= 400) errors.push(`${response.url()}: ${response.status()}`);
  });
  await page.goto(url);
  await page.waitForFunction('window.report', {timeout: 300000});
  report = await page.evaluate('window.report');
  if (screenshot) await page.screenshot({path: screenshot, fullPage: true});
} catch (error) {
  errors.push(String(error));
} finally {
  await browser.close();
}
console.log(JSON.stringify({report, errors}));

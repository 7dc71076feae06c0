// Looks at a file of HTML in headless Chromium and prints what is seen, as JSON:
// `node look.mjs MODULES CHROMIUM URL FOLDER WIDTH,WIDTH`; screenshots go into FOLDER.
import path from 'path';
import {launch} from './launch.mjs';

const [modules, chromium, url, screenshots, widths] = process.argv.slice(2);
const browser = await launch(modules, chromium);
const errors = [], requests = [], views = [];
try {
  const page = await browser.newPage();
  page.on('console', message => {
    if (['error', 'assert', 'warn'].includes(message.type())) errors.push(message.text());
  });
  page.on('pageerror', error => errors.push(String(error)));
  page.on('request', request => {
    if (!request.url().startsWith('data:')) requests.push(request.url());
  });
  for (const width of widths.split(',').map(Number)) {
    for (const scheme of ['light', 'dark']) {
      await page.setViewport({width, height: 900});
      await page.emulateMediaFeatures([{name: 'prefers-color-scheme', value: scheme}]);
      await page.goto(url, {waitUntil: 'load'});
      const seen = await page.evaluate(async () => {
        await Promise.all([...document.images].map(image => image.decode()));
        const style = getComputedStyle(document.body);
        // The colour of a picture's upper left corner is that of its paper.
        const papers = [...document.images].map(image => {
          const canvas = document.createElement('canvas');
          canvas.width = canvas.height = 1;
          const context = canvas.getContext('2d');
          context.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        });
        return {
          images: [...document.images].map(image => ({
            alt: image.alt, naturalWidth: image.naturalWidth, width: image.clientWidth,
            height: image.clientHeight,
          })),
          papers,
          scrollWidth: document.documentElement.scrollWidth,
          text: document.body.innerText,
          color: style.color, background: style.backgroundColor,
          fontSize: parseFloat(style.fontSize),
        };
      });
      views.push({width, scheme, ...seen});
      await page.screenshot({
        path: path.join(screenshots, `${width}-${scheme}.png`), fullPage: true,
      });
    }
  }
} catch (error) {
  errors.push(String(error));
} finally {
  await browser.close();
}
console.log(JSON.stringify({views, requests, errors}));

// Numbers, sizes and pictures in words.

const SPACE = "\u00a0"; // at which no line breaks

const sizeText = ([height, width]) => `${width} × ${height}`;
const sizeKey = ([height, width]) => `${width}x${height}`;
const cellKey = (picture) => JSON.stringify([picture.row, picture.size]);

function bytesText(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log(count) / Math.log(1024)));
  return `${Number((count / 1024 ** power).toPrecision(3))}${SPACE}${units[power]}`;
}

/** What a picture cost; empty if nobody looked. */
function costText(picture) {
  const parts = [];
  if (picture.seconds !== null) parts.push(`${Number(picture.seconds.toPrecision(3))}${SPACE}s`);
  if (picture.model_calls !== null) parts.push(`${picture.model_calls}${SPACE}calls`);
  if (picture.peak_bytes !== null) parts.push(bytesText(picture.peak_bytes));
  return parts.join(" · ");
}

const seedText = ({ seed }) => `seed ${seed}`;
const altText = (picture) => `${picture.row}: ${picture.prompt} (${seedText(picture)}, ${sizeText(picture.size)})`;

/** A row's name, with the size where the page has several. */
const cellText = (picture) => (data.sizes.length > 1 ? `${picture.row}, ${sizeText(picture.size)}` : picture.row);

/** Plain data as indented lines; what is unset is left out. */
function readable(value, indent = "") {
  if (value === null || typeof value !== "object") return `${indent}${value}\n`;
  return Object.entries(value)
    .filter(([, inner]) => !isEmpty(inner))
    .map(([name, inner]) => {
      const label = Array.isArray(value) ? `${Number(name) + 1}.` : `${name}:`;
      if (isPlain(inner)) return `${indent}${label} ${plainText(inner)}\n`;
      return `${indent}${label}\n${readable(inner, `${indent}  `)}`;
    })
    .join("");
}

const isObject = (value) => value !== null && typeof value === "object";
const isEmpty = (value) => value === null || value === "" || (isObject(value) && Object.keys(value).length === 0);
const isPlain = (value) => !isObject(value) || (Array.isArray(value) && !value.some(isObject));
const plainText = (value) => (Array.isArray(value) ? value.join(", ") : String(value));

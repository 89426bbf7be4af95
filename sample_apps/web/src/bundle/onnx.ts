/** The metadata properties of an ONNX file, read from its outermost protobuf fields. */

const METADATA_PROPS = 14; // ModelProto.metadata_props, of StringStringEntryProto {1: key, 2: value}

/** The value of a metadata property; null when the file has none such, or is no ONNX file. */
export function onnxProperty(bytes: Uint8Array, name: string): string | null {
  for (const [field, content] of fields(bytes)) {
    if (field !== METADATA_PROPS) continue;
    const entry = new Map([...fields(content)].map(([number, value]) => [number, new TextDecoder().decode(value)]));
    if (entry.get(1) === name) return entry.get(2) ?? "";
  }
  return null;
}

/** The length-delimited fields of a message; ends where it is not one. */
function* fields(bytes: Uint8Array): Generator<[number, Uint8Array]> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++]!;
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    return NaN;
  };
  while (at < bytes.length) {
    const tag = varint();
    const wire = tag % 8;
    if (wire === 2) {
      const size = varint();
      if (!(at + size <= bytes.length)) return;
      yield [Math.floor(tag / 8), bytes.subarray(at, at + size)];
      at += size;
    } else if (wire === 0) varint();
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else return;
  }
}

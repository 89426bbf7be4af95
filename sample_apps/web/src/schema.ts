/**
 * The part of JSON Schema (draft 2020-12) that the project's two schemas use. A keyword that is not known here is an
 * error: a rule that is not understood must not be passed over.
 */

import { BundleError } from "./errors";

type Schema = Record<string, unknown>;

const ANNOTATIONS = new Set(["$schema", "$id", "$defs", "title", "description"]);

/** Refuse `value` unless it is what `schema` says. `what` names it in the message. */
export function checkSchema(value: unknown, schema: Schema, what: string): void {
  const problem = find(value, schema, schema, "");
  if (problem !== null) {
    throw new BundleError(`${what} is not valid: ${problem} Export the bundle again, or use a newer version of this app.`);
  }
}

/** What is wrong, or null. */
function find(value: unknown, schema: Schema, root: Schema, at: string): string | null {
  for (const [keyword, rule] of Object.entries(schema)) {
    if (ANNOTATIONS.has(keyword)) continue;
    const check = KEYWORDS[keyword];
    if (check === undefined) throw new Error(`This app does not know the schema keyword ${keyword}.`);
    const problem = check(value, rule, schema, root, at);
    if (problem !== null) return problem;
  }
  return null;
}

type Check = (value: unknown, rule: any, schema: Schema, root: Schema, at: string) => string | null;

const KEYWORDS: Record<string, Check> = {
  $ref: (value, rule: string, _, root, at) => {
    const target = rule.split("/").slice(1).reduce<any>((node, key) => node[key], root);
    return find(value, target, root, at);
  },
  type: (value, rule: string | string[], _, __, at) =>
    [rule].flat().some((name) => isOf(value, name)) ? null : `${place(at)} is not of type ${[rule].flat().join(" or ")}.`,
  const: (value, rule, _, __, at) => (value === rule ? null : `${place(at)} is ${shown(value)}, not ${shown(rule)}.`),
  enum: (value, rule: unknown[], _, __, at) =>
    rule.includes(value) ? null : `${place(at)} is ${shown(value)}, which is none of ${rule.map(shown).join(", ")}.`,
  minimum: (value, rule: number, _, __, at) =>
    typeof value !== "number" || value >= rule ? null : `${place(at)} is below ${rule}.`,
  maximum: (value, rule: number, _, __, at) =>
    typeof value !== "number" || value <= rule ? null : `${place(at)} is above ${rule}.`,
  minLength: (value, rule: number, _, __, at) =>
    typeof value !== "string" || [...value].length >= rule ? null : `${place(at)} is too short.`,
  maxLength: (value, rule: number, _, __, at) =>
    typeof value !== "string" || [...value].length <= rule ? null : `${place(at)} is too long.`,
  pattern: (value, rule: string, _, __, at) =>
    typeof value !== "string" || new RegExp(rule, "u").test(value) ? null : `${place(at)} is ${shown(value)}.`,
  minItems: (value, rule: number, _, __, at) =>
    !Array.isArray(value) || value.length >= rule ? null : `${place(at)} has too few entries.`,
  maxItems: (value, rule: number, _, __, at) =>
    !Array.isArray(value) || value.length <= rule ? null : `${place(at)} has too many entries.`,
  items: (value, rule: Schema, _, root, at) => {
    if (!Array.isArray(value)) return null;
    for (let i = 0; i < value.length; i++) {
      const problem = find(value[i], rule, root, `${at}/${i}`);
      if (problem !== null) return problem;
    }
    return null;
  },
  required: (value, rule: string[], _, __, at) => {
    const absent = isOf(value, "object") ? rule.find((key) => !Object.hasOwn(value as object, key)) : undefined;
    return absent === undefined ? null : `${place(at)} has no ${absent}.`;
  },
  properties: (value, rule: Record<string, Schema>, _, root, at) => {
    if (!isOf(value, "object")) return null;
    for (const [key, entry] of Object.entries(rule)) {
      if (!Object.hasOwn(value as object, key)) continue;
      const problem = find((value as Schema)[key], entry, root, `${at}/${key}`);
      if (problem !== null) return problem;
    }
    return null;
  },
  additionalProperties: (value, rule: boolean | Schema, schema, root, at) => {
    if (!isOf(value, "object") || rule === true) return null;
    const known = (schema.properties ?? {}) as Schema;
    for (const [key, entry] of Object.entries(value as Schema)) {
      if (Object.hasOwn(known, key)) continue;
      if (rule === false) return `${place(at)} has ${shown(key)}, which this app does not know.`;
      const problem = find(entry, rule, root, `${at}/${key}`);
      if (problem !== null) return problem;
    }
    return null;
  },
  oneOf: (value, rule: Schema[], _, root, at) => {
    const problems = rule.map((option) => find(value, option, root, at));
    const fitting = problems.filter((problem) => problem === null).length;
    if (fitting === 1) return null;
    if (fitting > 1) return `${place(at)} may be read in two ways.`;
    // The option that went furthest is the one that was meant.
    return (problems as string[]).reduce((a, b) => (depth(b) > depth(a) ? b : a)) + hint(value);
  },
};

function isOf(value: unknown, name: string): boolean {
  switch (name) {
    case "null":
      return value === null;
    case "array":
      return Array.isArray(value);
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value);
    case "integer":
      return Number.isInteger(value);
    default:
      return typeof value === name;
  }
}

const place = (at: string): string => at.slice(1) || "the top level";
const depth = (problem: string): number => problem.split(" ", 1)[0]!.split("/").length;
const shown = (value: unknown): string => (JSON.stringify(value) ?? String(value)).slice(0, 80);
const hint = (value: unknown): string => {
  const type = isOf(value, "object") ? (value as Schema).type : undefined;
  return typeof type === "string" && type.length < 40 ? ` (in ${shown(type)})` : "";
};

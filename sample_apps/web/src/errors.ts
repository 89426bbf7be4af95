/** A bundle that cannot be used, with what to do about it. Its message is shown to the user as it is. */
export class BundleError extends Error {
  override name = "BundleError";
}

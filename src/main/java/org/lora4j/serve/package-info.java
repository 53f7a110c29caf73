/**
 * Serves one base model with any number of adapters: which exist, which are in memory, how rows of different adapters run
 * together, and an HTTP server on top.
 */
@NullMarked
package org.lora4j.serve;

import org.jspecify.annotations.NullMarked;

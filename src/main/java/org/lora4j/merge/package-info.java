/**
 * Merges adapters into checkpoints on disk without loading a model: tile by tile, in bounded memory, with a manifest of
 * what was done.
 */
@NullMarked
package org.lora4j.merge;

import org.jspecify.annotations.NullMarked;

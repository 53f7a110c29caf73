/** Finds the modules a configuration names, injects adapters into them and manages them. */
@NullMarked
package org.lora4j.model;

import org.jspecify.annotations.NullMarked;

/** Combinations of adapters, as pure functions. */
@NullMarked
package org.lora4j.combine;

import org.jspecify.annotations.NullMarked;

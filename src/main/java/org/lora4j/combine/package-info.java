/** Combinations of adapters, changes of their rank, and adapters from dense changes, as pure functions. */
@NullMarked
package org.lora4j.combine;

import org.jspecify.annotations.NullMarked;

/** Training of adapters: data, optimiser loop, evaluation, loss curves. */
@NullMarked
package org.lora4j.train;

import org.jspecify.annotations.NullMarked;

/** Layers that add adapters to a frozen LibTorch module, and the adapters themselves. */
@NullMarked
package org.lora4j.layer;

import org.jspecify.annotations.NullMarked;

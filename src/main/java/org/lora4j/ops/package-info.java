/** The arithmetic of low-rank updates: one interface, a LibTorch reference and native back ends. */
@NullMarked
package org.lora4j.ops;

import org.jspecify.annotations.NullMarked;

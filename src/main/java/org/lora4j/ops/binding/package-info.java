/** The only package with {@code native} methods: JavaCPP's view of {@code lora4j.h}. */
@NullMarked
package org.lora4j.ops.binding;

import org.jspecify.annotations.NullMarked;

package org.lora4j.format;

/**
 * A view of a storage: the element at index (i, j, ...) is number {@code offset + i * stride[0] + j * stride[1] + ...} of
 * the storage.
 *
 * @param storage what it views
 * @param dtype its element type
 * @param offset its first element
 * @param size the sizes of its dimensions
 * @param stride the steps of its dimensions, in elements
 */
record StridedTensor(TorchStorage storage, DType dtype, long offset, long[] size, long[] stride) {
    int elementBytes() {
        return dtype.bits() / 8;
    }

    /** Whether the elements lie one after another in row-major order. */
    boolean contiguous() {
        long expected = 1;
        for (int i = size.length - 1; i >= 0; i--) {
            if (size[i] != 1 && stride[i] != expected) {
                return elements() == 0;
            }
            expected *= size[i];
        }
        return true;
    }

    private long elements() {
        long elements = 1;
        for (long length : size) {
            elements *= length;
        }
        return elements;
    }

    /**
     * Checks that the view lies within its storage.
     *
     * @return what is wrong, or an empty string
     */
    static String defect(TorchStorage storage, DType dtype, long offset, long[] size, long[] stride) {
        if (size.length != stride.length) {
            return size.length + " sizes but " + stride.length + " strides";
        }
        if (size.length > SafetensorsHeader.MAX_RANK) {
            return size.length + " dimensions, more than " + SafetensorsHeader.MAX_RANK;
        }
        try {
            long last = offset;
            boolean empty = false;
            boolean negative = offset < 0;
            for (int i = 0; i < size.length; i++) {
                negative |= size[i] < 0 || stride[i] < 0;
                empty |= size[i] == 0;
                last = Math.addExact(last, Math.multiplyExact(Math.max(0, size[i] - 1), stride[i]));
            }
            if (negative) {
                return "a negative offset, size or stride";
            }
            SafetensorsHeader.bytes(dtype, size);
            long available = storage.bytes() / (dtype.bits() / 8);
            return empty || last < available
                    ? ""
                    : "its last element is number " + last + " of a storage of " + available;
        } catch (ArithmeticException e) {
            return "a size beyond 63 bits";
        }
    }
}

package org.lora4j.serve;

import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.AdapterImage;

/** Images of adapters in host memory, the least recently used of which make room for others. Guarded by the pool's lock. */
final class HostCache implements AutoCloseable {
    private final long budget;
    private final Map<AdapterEntry, AdapterImage> images = new LinkedHashMap<>();
    private long used;

    HostCache(long budget) {
        this.budget = budget;
    }

    long used() {
        return used;
    }

    /** Takes an image out, for the caller to use and put back. */
    @Nullable
    AdapterImage take(AdapterEntry entry) {
        AdapterImage image = images.remove(entry);
        if (image != null) {
            used -= image.bytes();
        }
        return image;
    }

    /** Takes over an image: keeps it if there is room, else closes it. */
    void put(AdapterEntry entry, AdapterImage image) {
        remove(entry);
        if (image.bytes() > budget) {
            image.close();
            return;
        }
        Iterator<AdapterImage> oldest = images.values().iterator();
        while (used + image.bytes() > budget) {
            AdapterImage victim = oldest.next();
            used -= victim.bytes();
            oldest.remove();
            victim.close();
        }
        images.put(entry, image);
        used += image.bytes();
    }

    void remove(AdapterEntry entry) {
        AdapterImage image = take(entry);
        if (image != null) {
            image.close();
        }
    }

    @Override
    public void close() {
        images.values().forEach(AdapterImage::close);
        images.clear();
        used = 0;
    }
}

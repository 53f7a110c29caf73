package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.lora4j.format.ZipDirectory.Place;

/**
 * What {@code torch.save} wrote, taken out of its zip or its sequence of pickles.
 *
 * @param root the object saved
 * @param places where the data of each storage lies, by key; no two overlap
 * @param bigEndian the byte order of the data
 */
record TorchContainer(Object root, Map<String, Place> places, boolean bigEndian) {
    /** The pickled magic number that starts a file of PyTorch before 1.6. */
    static final byte[] LEGACY_START = {
        (byte) 0x80,
        2,
        (byte) 0x8a,
        10,
        0x6c,
        (byte) 0xfc,
        (byte) 0x9c,
        0x46,
        (byte) 0xf9,
        0x20,
        0x6a,
        (byte) 0xa8,
        0x50,
        0x19,
        '.'
    };

    private static final long LEGACY_PROTOCOL = 1001;
    private static final List<String> PICKLE_NAMES = List.of(".bin", ".pt", ".pth", ".ckpt", ".pkl");

    static boolean isZip(ByteBuffer start) {
        return start.remaining() >= 4 && start.order(ByteOrder.LITTLE_ENDIAN).getInt(start.position()) == 0x04034b50;
    }

    /** Whether a file is a pickle: for certain, or by its first byte and a name that such files have. */
    static boolean isPickle(ByteBuffer start, String name) {
        byte[] bytes = new byte[start.remaining()];
        start.duplicate().get(bytes);
        return Arrays.equals(bytes, LEGACY_START) || PICKLE_NAMES.stream().anyMatch(name::endsWith);
    }

    static TorchContainer read(FileChannel channel, String file) throws IOException {
        ByteBuffer start = ByteBuffer.allocate((int) Math.min(channel.size(), LEGACY_START.length));
        PyTorchFile.readFully(channel, file, start, 0);
        if (isZip(start.flip())) {
            return zip(channel, file);
        }
        if (Arrays.equals(start.array(), LEGACY_START)) {
            return legacy(channel, file);
        }
        throw new FormatException(file + ": begins neither as a zip nor as a pickle of torch.save; load it in the "
                + "program that wrote it and save it as safetensors");
    }

    private static TorchContainer zip(FileChannel channel, String file) throws IOException {
        ZipDirectory zip = ZipDirectory.read(channel, file);
        String first = zip.names().isEmpty() ? "" : zip.names().get(0);
        String root = first.substring(0, first.indexOf('/') + 1);
        Place pickle = zip.find(root + "data.pkl");
        if (pickle == null || pickle.bytes() > PickleInput.MAX_BYTES) {
            throw new FormatException(file + ": its record data.pkl is missing or larger than " + PickleInput.MAX_BYTES
                    + " bytes; check that torch.save wrote it");
        }
        if (zip.find(root + "constants.pkl") != null) {
            throw new FormatException(file + ": is a TorchScript program; save the state dict alone with torch.save");
        }
        boolean bigEndian = bigEndian(zip, zip.find(root + "byteorder"), file);
        Unpickler unpickler = new Unpickler(new PickleInput(zip.content(pickle), file), file);
        Object value = unpickler.load();
        Map<String, Place> places = new LinkedHashMap<>();
        for (TorchStorage storage : unpickler.storages().values()) {
            Place place = zip.find(root + "data/" + storage.key());
            if (place == null || place.bytes() != storage.bytes()) {
                throw new FormatException(file + ": its record data/" + SafetensorsHeader.shorten(storage.key())
                        + (place == null ? " is missing" : " has " + place.bytes() + " bytes")
                        + " where a storage has " + storage.bytes() + "; copy the file again");
            }
            places.put(storage.key(), place);
        }
        List<Place> all = new ArrayList<>(places.values());
        all.add(pickle);
        refuseOverlap(all, file);
        return new TorchContainer(value, places, bigEndian);
    }

    private static boolean bigEndian(ZipDirectory zip, @org.jspecify.annotations.Nullable Place record, String file)
            throws IOException {
        if (record == null) {
            return false;
        }
        String order = record.bytes() > 6 ? "" : new String(zip.content(record), StandardCharsets.ISO_8859_1);
        if (!order.equals("little") && !order.equals("big")) {
            throw new FormatException(
                    file + ": its record byteorder is neither \"little\" nor \"big\"; save the file again");
        }
        return order.equals("big");
    }

    private static void refuseOverlap(List<Place> places, String file) throws FormatException {
        places.sort(Comparator.comparingLong(Place::begin).thenComparingLong(Place::end));
        for (int i = 1; i < places.size(); i++) {
            if (places.get(i).begin() < places.get(i - 1).end()) {
                throw new FormatException(file + ": two of its records lie over each other at byte "
                        + places.get(i).begin() + "; do not trust its source");
            }
        }
    }

    /**
     * Five pickles (the magic number, the version, the system, the object, the keys of its storages), then the count of
     * elements and the data of each storage. The data are always little endian.
     */
    private static TorchContainer legacy(FileChannel channel, String file) throws IOException {
        long rest = channel.size() - LEGACY_START.length;
        ByteBuffer bytes = ByteBuffer.allocate((int) Math.min(rest, PickleInput.MAX_BYTES));
        PyTorchFile.readFully(channel, file, bytes, LEGACY_START.length);
        PickleInput in = new PickleInput(bytes.array(), file);
        Unpickler unpickler = new Unpickler(in, file);
        if (!unpickler.load().equals(LEGACY_PROTOCOL) || !(unpickler.load() instanceof Map)) {
            throw in.wrong("its version is not " + LEGACY_PROTOCOL);
        }
        Object value = unpickler.load();
        if (!(unpickler.load() instanceof List<?> keys)) {
            throw in.wrong("no list of storages follows");
        }
        Map<String, Place> places = new LinkedHashMap<>();
        long at = LEGACY_START.length + in.position();
        for (Object key : keys) {
            TorchStorage storage = key instanceof String ? unpickler.storages().get(key) : null;
            if (storage == null || channel.size() - at < Long.BYTES) {
                throw in.wrong("the list of storages does not fit the tensors and the data");
            }
            ByteBuffer count = ByteBuffer.allocate(Long.BYTES).order(ByteOrder.LITTLE_ENDIAN);
            PyTorchFile.readFully(channel, file, count, at);
            at += Long.BYTES;
            if (count.getLong(0) != storage.elements() || storage.bytes() > channel.size() - at) {
                throw in.wrong("a storage of " + storage.bytes() + " bytes is not where its data should be");
            }
            if (places.put(storage.key(), new Place(at, storage.bytes())) != null) {
                throw in.wrong("a storage has data twice");
            }
            at += storage.bytes();
        }
        return new TorchContainer(value, places, false);
    }
}

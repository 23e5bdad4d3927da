package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

const (
	headerSize = 10 // tag, size, response code (TPM 2.0 Part 1, 16.10)

	// maxResponse is how large a response may be. Those of real TPMs have at most 4096 bytes.
	maxResponse = 16 << 10
)

// roundTrip writes one command and reads its response, all of it and nothing else. After an
// error the connection is of no more use: what it delivers next may belong to this command.
func roundTrip(rw io.ReadWriter, command []byte) ([]byte, error) {
	if err := writeAll(rw, command); err != nil {
		return nil, fmt.Errorf("writing a command: %w", err)
	}
	// The first read asks for everything: a TPM device may drop what was not asked for.
	buf := make([]byte, maxResponse)
	n, want := 0, headerSize
	for n < want {
		m, err := readSome(rw, buf[n:])
		n += m
		if err != nil {
			return nil, fmt.Errorf("reading a response, after %d bytes: %w", n, err)
		}
		if n < headerSize {
			continue
		}
		if tag := binary.BigEndian.Uint16(buf); tag != 0x8001 && tag != 0x8002 {
			return nil, fmt.Errorf("a response starts with %#04x, which is not of a TPM 2.0", tag)
		}
		size := binary.BigEndian.Uint32(buf[2:])
		if size < headerSize || size > maxResponse {
			return nil, fmt.Errorf("a response says that it has %d bytes", size)
		}
		want = int(size)
	}
	if n > want {
		return nil, fmt.Errorf("%d bytes more than a response came", n-want)
	}
	return buf[:n:n], nil
}

// writeAll writes b. A signal that interrupts it is not an error: the Go runtime sends many.
func writeAll(w io.Writer, b []byte) error {
	for len(b) > 0 {
		n, err := w.Write(b)
		b = b[n:]
		if err != nil && !(errors.Is(err, syscall.EINTR) || errors.Is(err, io.ErrShortWrite) && n > 0) {
			return err
		}
	}
	return nil
}

// readSome reads at least one byte.
func readSome(r io.Reader, b []byte) (int, error) {
	for range 100 {
		n, err := r.Read(b)
		switch {
		case n > 0:
			return n, nil
		case errors.Is(err, syscall.EINTR):
		case err == io.EOF:
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		}
	}
	return 0, io.ErrNoProgress
}

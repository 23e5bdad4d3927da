package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpmutil/tbs"

	"github.com/scepkit/scepkit/backend"
)

// defaultDevice is the TPM Base Services, which let processes share the TPM.
const defaultDevice = "tbs"

func dialDevice(_ context.Context, name string) (io.ReadWriteCloser, error) {
	if name != defaultDevice {
		return nil, fmt.Errorf("there is no device %q on Windows; leave it out to use the TPM Base Services: %w", name, backend.ErrUnsupported)
	}
	info, err := tbs.GetDeviceInfo()
	if err != nil {
		return nil, fmt.Errorf("the TPM Base Services find no TPM (%v); enable it in the firmware, or use a key of file: or pkcs11: %w", err, backend.ErrUnsupported)
	}
	if info.TPMVersion != tbs.TPMVersion20 {
		return nil, fmt.Errorf("the TPM of this computer is not a TPM 2.0; use a key of file: or pkcs11: %w", backend.ErrUnsupported)
	}
	context, err := tbs.CreateContext(tbs.TPMVersion20, tbs.IncludeTPM20)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM Base Services: %w", err)
	}
	return &services{context: context}, nil
}

// services makes a stream of the TPM Base Services.
type services struct {
	context  tbs.Context
	response []byte
}

// Write sends a command, which it must be handed whole, and waits for the response.
func (s *services) Write(command []byte) (int, error) {
	if len(s.response) > 0 {
		return 0, errors.New("the response before was not read")
	}
	buf := make([]byte, maxResponse)
	n, err := s.context.SubmitCommand(tbs.NormalPriority, command, buf)
	if err != nil {
		return 0, err
	}
	s.response = buf[:min(int(n), len(buf))]
	return len(command), nil
}

func (s *services) Read(b []byte) (int, error) {
	if len(s.response) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.response)
	s.response = s.response[n:]
	return n, nil
}

func (s *services) Close() error { return s.context.Close() }

package tpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
)

// kind says what to do about an error.
type kind int

const (
	fine    kind = iota // no error
	final               // it will not be better the second time
	garbled             // what came back cannot be relied on: use another connection
	lost                // the TPM does not have what was loaded into it: load it again
)

// errLost is what may come of a session or key that the TPM lost.
var errLost = errors.New("the TPM lost what was loaded into it")

func kindOf(err error) kind {
	var rc tpm2.TPMRC
	switch {
	case err == nil:
		return fine
	case errors.Is(err, errLost):
		return lost
	case explained(err):
		return final
	case !errors.As(err, &rc):
		return garbled
	case rc >= tpm2.TPMRCReferenceH0 && rc <= tpm2.TPMRCReferenceS6, rc == tpm2.TPMRCInitialize, rc.Is(tpm2.TPMRCHandle), rc.Is(tpm2.TPMRCNonce):
		return lost
	}
	if rc.Is(tpm2.TPMRCValue) && !parameter(rc) {
		return lost // a handle that nothing is loaded at
	}
	return final
}

// parameter reports whether the TPM complains of a parameter, not of a handle or session.
func parameter(rc tpm2.TPMRC) bool {
	var f tpm2.TPMFmt1Error
	if !errors.As(rc, &f) {
		return false
	}
	is, _ := f.Parameter()
	return is
}

// denied reports whether the TPM did not accept an authorization value.
func denied(err error) bool {
	return errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)
}

// explained reports whether err has its class already.
func explained(err error) bool {
	for _, class := range []error{
		backend.ErrUnavailable, backend.ErrPIN, backend.ErrNotFound, backend.ErrAmbiguous, backend.ErrMismatch, backend.ErrUnsupported,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// explain gives err its class.
func explain(err error) error {
	if explained(err) {
		return err
	}
	var rc tpm2.TPMRC
	if !errors.As(err, &rc) {
		return fmt.Errorf("%w: %w", err, backend.ErrUnavailable)
	}
	switch {
	case rc == tpm2.TPMRCLockout:
		return fmt.Errorf("the TPM is locked after wrong authorization values, or after it lost its power while in use, and refuses right ones too; wait for its recovery time, or run `tpm2_dictionarylockout --clear-lockout` (%w): %w", err, backend.ErrPIN)
	case denied(err):
		return fmt.Errorf("the TPM does not accept the authorization value (%w): %w", err, backend.ErrPIN)
	case rc == tpm2.TPMRCInitialize:
		return fmt.Errorf("the TPM was not started up, which firmware or kernel should do; restart the computer (%w): %w", err, backend.ErrUnavailable)
	case rc == tpm2.TPMRCFailure:
		return fmt.Errorf("the TPM is in failure mode; restart the computer, and replace the TPM if it comes again (%w): %w", err, backend.ErrUnavailable)
	case rc == tpm2.TPMRCObjectMemory, rc == tpm2.TPMRCSessionMemory:
		return fmt.Errorf("the TPM is full of what other programs loaded into it; end them, or run `tpm2_flushcontext -t` and `-l` (%w): %w", err, backend.ErrUnavailable)
	case rc == tpm2.TPMRCCommandCode:
		return fmt.Errorf("the TPM does not know a command that is needed here (%w): %w", err, backend.ErrUnsupported)
	}
	return fmt.Errorf("%w: %w", err, backend.ErrUnavailable)
}

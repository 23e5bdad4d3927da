//go:build cgo

package pkcs11

import (
	"errors"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/backend"
)

// A class says what an error of the module calls for.
type class uint8

const (
	request class = iota // the request is at fault
	lost                 // the session, login or device is gone: open the token again
	refused              // the PIN: leave the token alone until a person acts
	unclear              // the device may be broken, or the block malformed: tokens differ
)

// code returns what the module said, or CKR_OK if err is not from there.
func code(err error) p11.Error {
	var e p11.Error
	if !errors.As(err, &e) {
		return p11.CKR_OK
	}
	return e
}

// classOf sorts the errors of modules. Those that are not PKCS#11's are the request's.
func classOf(err error) class {
	switch code(err) {
	case p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_SESSION_CLOSED, p11.CKR_SESSION_COUNT,
		p11.CKR_DEVICE_REMOVED, p11.CKR_DEVICE_ERROR, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED,
		p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_OBJECT_HANDLE_INVALID, p11.CKR_KEY_HANDLE_INVALID,
		p11.CKR_OPERATION_ACTIVE, p11.CKR_OPERATION_NOT_INITIALIZED, p11.CKR_CRYPTOKI_NOT_INITIALIZED,
		p11.CKR_SLOT_ID_INVALID:
		return lost
	case p11.CKR_PIN_INCORRECT, p11.CKR_PIN_LOCKED, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE:
		return refused
	case p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_MEMORY, p11.CKR_HOST_MEMORY:
		return unclear
	}
	return request
}

// ambiguous reports whether an error that calls for opening the token again may be how it speaks
// of a malformed block. One about sessions, logins and handles is not.
func ambiguous(err error) bool {
	switch code(err) {
	case p11.CKR_DEVICE_ERROR, p11.CKR_OPERATION_NOT_INITIALIZED:
		return true
	}
	return false
}

// unavailable has err wrap backend.ErrUnavailable, and says so once.
func unavailable(err error) error {
	if errors.Is(err, backend.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", err, backend.ErrUnavailable)
}

// explain wraps what the module said in the error of package backend that fits, unless there
// is one in it already.
func explain(err error) error {
	for _, known := range []error{backend.ErrUnavailable, backend.ErrPIN, backend.ErrUnsupported} {
		if errors.Is(err, known) {
			return err
		}
	}
	switch classOf(err) {
	case refused:
		return fmt.Errorf("%w: %w", err, backend.ErrPIN)
	case lost, unclear:
		return fmt.Errorf("%w: %w", err, backend.ErrUnavailable)
	}
	if code(err) != p11.CKR_OK {
		return fmt.Errorf("%w: %w", err, backend.ErrUnsupported)
	}
	return err
}

// Package backend says what every key backend promises, and has the errors that they share.
// The backends are the packages below it.
//
// A backend returns a [*scep.Identity]: a private key, wherever it lives, and its
// certificates, from one call, so that nobody sees a new chain with an old key. For every
// identity:
//
//   - Key belongs to the first certificate, and each certificate was issued by the next one.
//     Otherwise there is an error and no identity.
//   - Key signs what [crypto.Signer] is handed: RSA (PKCS #1 v1.5 and PSS) and ECDSA sign
//     digests, Ed25519 signs messages. A hash that is not SHA-1, SHA-256, SHA-384 or SHA-512,
//     or a digest of another length than its hash has, is an error.
//   - Every signature is verified before it is returned, so that a faulty device, or a fault in
//     the arithmetic, gives an error and not a signature that betrays the key.
//   - Key has the method SignContext that [scep.Identity] describes.
//   - A Key that can decrypt implements [scep.Unwrapper]: a malformed block gives random
//     bytes; an error says that the key is unavailable or not for that transport. A Key that cannot decrypt does
//     not have that method.
//   - Key and the identity may be used concurrently.
//   - Key prints as "[redacted]".
//   - Who opens closes: a backend that holds a device open has a Close for it. Closing ends
//     the use of its identities, which from then on give errors. Nobody else closes it.
//
// The errors of all backends start with the name of the package, name the file, token or key
// concerned, and wrap one of the variables below where one fits.
package backend

import "github.com/scepkit/scepkit/backend/internal/custody"

var (
	// ErrUnavailable says that the key or its device does not answer now. Nothing is wrong
	// with the request: try it again later.
	ErrUnavailable = custody.ErrUnavailable

	// ErrPIN says that the PIN is wrong, missing or locked. Trying again may lock it for
	// good: have a person see to it first.
	ErrPIN = custody.ErrPIN

	// ErrNotFound says that there is no such file, token, key or certificate. Correct the
	// name, or make what is missing.
	ErrNotFound = custody.ErrNotFound

	// ErrAmbiguous says that more than one key or certificate is meant. Name it more exactly,
	// or remove what is not wanted.
	ErrAmbiguous = custody.ErrAmbiguous

	// ErrMismatch says that key and certificates do not belong together, or are in the wrong
	// order. Put the certificate of the key first, then its issuer, and so on.
	ErrMismatch = custody.ErrMismatch

	// ErrUnsupported says that the backend cannot use such a key, file or operation, now or
	// later. Use another, as the text of the error says.
	ErrUnsupported = custody.ErrUnsupported
)
